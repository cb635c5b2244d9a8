"""Which files of this machine are taken as media, told by their content and not by their names."""

import os
import re
import stat
import struct
from pathlib import Path
from typing import BinaryIO

# Bytes at the start of a file that tell its kind.
_HEAD_BYTES = 4096
# Scripts that name other files or addresses. They are refused before anything they name is read.
_PLAYLISTS = (
    (re.compile(rb"#EXTM3U|#EXT-X-", re.I), "an M3U playlist"),
    (re.compile(rb"ffconcat version|file +['\"/\w]", re.I), "a concat script"),
    (re.compile(rb"v=0\s*\r?\n\s*[osbtcam]=", re.I), "an SDP session"),
    (re.compile(rb"\[playlist\]|\[reference\]|#\.?imf|rtsp://|https?://", re.I), "a playlist"),
    (re.compile(rb"<asx|<smil|<wpl|(<\?xml.*)?<playlist", re.I | re.S), "a playlist"),
    (re.compile(rb"(<\?xml.*)?<(\w+:)?MPD[\s>]", re.S), "a DASH manifest"),
    (re.compile(rb"(<\?xml.*)?<(\w+:)?(CompositionPlaylist|AssetMap|SmoothStreamingMedia)[\s>]", re.S), "a manifest"),
)
_PLAYLIST_SUFFIXES = (".m3u", ".m3u8", ".ffconcat", ".sdp", ".mpd", ".pls", ".asx", ".xspf", ".smil", ".cpl")
# Pictures that nothing here can show as they are meant, with what to do.
_OTHER_PICTURES = (
    (re.compile(rb"%PDF-"), "a PDF document", "export the page as PNG"),
    (re.compile(rb"8BPS"), "a PSD document of layers", "export it as PNG"),
    (re.compile(rb"(<\?xml.*)?(<!--.*)?(<!DOCTYPE svg.*)?<(\w+:)?svg[\s/>]", re.I | re.S), "SVG", "export it as PNG"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript", "export it as PNG"),
    (re.compile(rb"\x1f\x8b"), "compressed (gzip, such as SVGZ)", "unpack it, or export the picture as PNG"),
    (re.compile(rb"v/1\x01|#\?RADIANCE|#\?RGBE|P[Ff]4?\s"), "a picture of linear light", "export it as PNG"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL", "convert it to JPEG or PNG"),
    (re.compile(rb"II\*\0....CR|FUJIFILMCCD-RAW|II(RO|RS|U\0)|MMOR|....ftypcrx ", re.S), "RAW", "develop it as PNG"),
)
_RAW_SUFFIXES = (
    ".cr2",
    ".cr3",
    ".nef",
    ".nrw",
    ".arw",
    ".dng",
    ".raf",
    ".orf",
    ".rw2",
    ".pef",
    ".srw",
    ".3fr",
    ".iiq",
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx")
# Boxes whose end may be missing without harm are all others.
_ISO_CONTENT = (b"moov", b"mdat", b"moof")
# What writers put where they do not know a size yet.
_ASF_START, _ASF_PROPERTIES = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11"
_RIFF_UNKNOWN = (0, 0xFFFFFFFF, 0x7FFFFFFF)
# Writers of RIFF and of MP3 disagree about what they count: padding, the last chunk, the frame of the header itself.
_SLACK, _SLACK_BYTES = 0.01, 2048


def file_head(path: str | os.PathLike) -> bytes:
    """The first bytes of a file, which is checked to be a file of this machine.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, a device or a pipe, or cannot be opened.
    """
    name = repr(os.fspath(path))
    try:
        mode = os.stat(path).st_mode
        head = b""
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                head = file.read(_HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"no media file at {name}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} cannot be opened ({reason}); give the name of a media file") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise ValueError(f"{name} is {what}; give the name of a media file")
    return head


def check_kind(path: str | os.PathLike) -> bytes:
    """Raise if a file is none that can be taken as media; return its first bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it names other files instead of holding media, is a picture of a kind that cannot be shown, or
            is no file at all.
    """
    head = file_head(path)
    name, suffix = repr(os.fspath(path)), Path(os.fsdecode(path)).suffix.lower()
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    playlist = next((kind for start, kind in _PLAYLISTS if start.match(text)), None)
    if playlist is None and suffix in _PLAYLIST_SUFFIXES and b"\0" not in head:
        playlist = "a playlist"
    if playlist is not None:
        raise ValueError(f"{name} is {playlist}, which names other files; give the media file itself")
    for start, kind, remedy in _OTHER_PICTURES:
        if start.match(text):
            raise ValueError(f"{name} is {kind}, which cannot be read; {remedy}")
    # Other makers' RAW files are TIFF files of a small preview.
    if suffix in _RAW_SUFFIXES and head.startswith((b"II", b"MM")):
        raise ValueError(f"{name} is RAW, which cannot be read; develop it as PNG")
    return head


def is_heif(head: bytes) -> bool:
    """Whether a file that begins so is HEIC or a relative of it other than AVIF."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not is_avif(head)


def is_avif(head: bytes) -> bool:
    """Whether a file that begins so is AVIF, whose brand may stand behind a general one."""
    return head[4:8] == b"ftyp" and any(
        brand in head[8 : int.from_bytes(head[:4], "big")] for brand in (b"avif", b"avis")
    )


def may_be_animated(head: bytes) -> bool:
    """Whether a file that begins so is of a kind of picture that may move."""
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return is_webp or is_avif(head) or head.startswith((b"GIF8", b"\x89PNG"))


def check_complete(path: str | os.PathLike, head: bytes) -> None:
    """Raise `ValueError` if a file ends before its header says; headers that do not know are believed."""
    slack = 0
    with open(path, "rb") as file:
        held = os.fstat(file.fileno()).st_size
        if head[4:8] in _ISO_BOXES:
            promised = _promised_by_boxes(file, held)
        elif head[:4] == b"\x1aE\xdf\xa3":
            promised = _promised_by_segment(head, held)
        elif head[:4] == b"RIFF":
            size = struct.unpack("<I", head[4:8].ljust(4, b"\0"))[0]
            promised = 0 if size in _RIFF_UNKNOWN else 8 + size
            slack = min(int(_SLACK * promised), _SLACK_BYTES)
        elif head[:4] == b"FORM":
            promised = 8 + int.from_bytes(head[4:8], "big")
        elif head.startswith(_ASF_START):
            promised = _promised_by_asf(head)
        elif head[:3] == b"FLV":
            promised = _promised_by_flv(head)
        else:
            promised = _promised_by_mp3(file, head)
            slack = max(int(_SLACK * promised), _SLACK_BYTES)
    if promised - slack > held:
        raise ValueError(
            f"{os.fspath(path)!r} is cut off: its header promises {promised} bytes but {held} are there "
            f"({100 * held // promised} %); copy or download it again"
        )


def _promised_by_boxes(file: BinaryIO, held: int) -> int:
    """Where the last box of an MP4 or MOV file that holds media ends."""
    start = 0
    while start + 8 <= held:
        file.seek(start)
        size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        size = large if size == 1 else size
        # Zero means up to the end of the file.
        if size < 8 or (start + size > held and kind not in _ISO_CONTENT):
            break
        start += size
    return max(held, start)


def _promised_by_segment(head: bytes, held: int) -> int:
    """Where the segment of a Matroska or WebM file ends; the end of the file where the header does not know."""
    header_bytes, start = _ebml_number(head, 4)
    start += header_bytes or 0
    if head[start : start + 4] != b"\x18\x53\x80\x67":
        return held
    size, start = _ebml_number(head, start + 4)
    return held if size is None else max(held, start + size)


def _promised_by_asf(head: bytes) -> int:
    """Size of a WMV or WMA file by its properties; 0 if they are a broadcast's or not there."""
    place = head.find(_ASF_PROPERTIES)
    if place < 0 or len(head) < place + 92 or head[place + 88] & 1:
        return 0
    return int.from_bytes(head[place + 40 : place + 48], "little")


def _promised_by_flv(head: bytes) -> int:
    """Size of an FLV file by its script data, or 0."""
    found = re.search(rb"\0\x08filesize\0(.{8})", head, re.S)
    size = 0.0 if found is None else struct.unpack(">d", found[1])[0]
    return int(size) if 0 < size < 2**63 else 0


def _promised_by_mp3(file: BinaryIO, head: bytes) -> int:
    """Where the sound of an MP3 file ends by the header of variable bit rates that its first frame holds, or 0."""
    start = 0
    if head[:3] == b"ID3":
        # Sizes of tags have seven bits in each byte.
        start = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
    file.seek(start)
    found = re.match(rb"\xff[\xe0-\xff].{2,40}?(?:Xing|Info)(.{4})(.*)", file.read(256), re.S)
    flags = 0 if found is None else int.from_bytes(found[1], "big")
    if found is None or not flags & 2:
        return 0
    # The number of frames comes first, if it is there.
    place = 4 if flags & 1 else 0
    return start + int.from_bytes(found[2][place : place + 4], "big")


def _ebml_number(head: bytes, start: int) -> tuple[int | None, int]:
    """A size of Matroska and the place behind it; `None` if all its bits are set, which means unknown."""
    first = head[start] if start < len(head) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(head[start : start + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), start + length
