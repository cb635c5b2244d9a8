"""The page of the server: how it is handed out, and a person's way through it in Chromium."""

import base64
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest

from benchmarks.serving_load import Server
from ltx2_diffusers import packaged_checkpoint
from ltx2_diffusers.serving.page import route
from ltx2_diffusers.serving.settings import Limits
from scripts.browser import BROWSERS, browser_path, open_browser
from scripts.pages import write_media
from tests.serving.clips import decoded
from tests.serving.test_access import KEYS, SITE

PROMPT = "a red circle bounces on a blue background"
JOB_MS = 60_000
DROP = """([name, kind, content]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type: kind }));
    return transfer;
}"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/page.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
    ],
)
def test_the_page_is_handed_out_to_everybody(serve, path, kind):
    with serve(api_keys=KEYS) as client:
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.content
        head = client.head(path)
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", answer.headers["etag"])
        assert "access-control-allow-origin" not in answer.headers
        assert client.get(path, headers={"Origin": SITE}).status_code == 403
        assert client.post(path).status_code == 405
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["route.py", "__init__.py", "..%2Fapp.py", "%2E%2E/app.py", "none.js", ""])
def test_nothing_else_is_handed_out(client, name):
    assert client.get(f"/page/{name}").status_code == 404


def test_the_page_holds_no_script_and_names_no_other_host(client):
    for name in route._FILES:
        text = client.get(f"/page/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?:|//[\w-]+\.\w|<script(?![^>]*src=)|<style|\bon\w+=\"|innerHTML|outerHTML|insertAdjacent", text
        )


def test_the_description_tells_defaults_and_limits(serve):
    with serve(limits=Limits(max_steps=77)) as client:
        told = client.get("/openapi.json").json()["components"]["schemas"]["VideoRequest"]
    assert told["x-limits"]["max_steps"] == 77
    expected = {"width": 768, "height": 512, "num_frames": 121, "frame_rate": 24.0, "steps": 40, "guidance_scale": 3.0}
    assert {name: told["x-defaults"][name] for name in expected} == expected
    assert told["x-defaults"].keys() <= told["properties"].keys()


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright.sync_api", reason="the page is tried with playwright, which is not installed")
    if browser_path() is None:
        pytest.skip(f"the page is tried in a browser, and none of {', '.join(BROWSERS)} is installed")
    with open_browser() as started:
        yield started


@pytest.fixture(scope="module")
def server(request, tmp_path_factory) -> Iterator[Server]:
    # Without a browser there is nothing to start it for.
    request.getfixturevalue("browser")
    started = Server(tmp_path_factory.mktemp("served") / "data", "--grace", "1")
    yield started
    started.stop()


@pytest.fixture
def guarded(browser, tmp_path) -> Iterator[Server]:
    """A server that asks for keys."""
    assert browser.is_connected()
    (tmp_path / "keys.txt").write_text("\n".join(KEYS))
    started = Server(tmp_path / "data", "--api-keys", str(tmp_path / "keys.txt"), "--grace", "1")
    yield started
    started.stop()


@pytest.fixture
def small(browser, tmp_path) -> Iterator[Server]:
    """A server with a LoRA and little memory."""
    assert browser.is_connected()
    lora = packaged_checkpoint("ltx2-mini") / "ic_lora.safetensors"
    started = Server(tmp_path / "data", "--lora", f"style={lora}", "--max-memory-gb", "1", "--grace", "1")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Pictures, clips and sounds of the miniature's world."""
    folder = tmp_path_factory.mktemp("media")
    write_media(folder)
    return folder


@pytest.fixture
def opened(browser):
    """Opens the page of a server, and fails a test in which something went wrong in the background."""
    problems: list[str] = []

    def start(server: Server, **how):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(JOB_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: said.type == "error" and problems.append(said.text))
        # What a reload or the end of a test breaks off is aborted, and so Chromium calls streams that were read to the end.
        page.on("requestfailed", lambda one: "ABORTED" in one.failure or problems.append(f"{one.failure}: {one.url}"))
        page.on("request", lambda one: problems.append(one.url) if _is_foreign(one.url, server) else None)
        page.goto(f"{server.url}/")
        page.locator("input[name=task], #key-dialog[open]").first.wait_for()
        return page

    contexts: list = []
    yield start
    for context in contexts:
        context.close()
    # A browser writes of every refusal; the tests look at them on the page.
    assert [one for one in problems if not re.search("status of (401|422)", one)] == []


def _is_foreign(url: str, server: Server) -> bool:
    return urlsplit(url).scheme not in ("blob", "data") and urlsplit(url).netloc != urlsplit(server.url).netloc


def routes(server: Server) -> list[str]:
    return list(server.told("GET", "/openapi.json")["paths"])


def filled(page, prompt: str = PROMPT, steps: int = 3, **fields) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for label, value in {"Steps": steps, **fields}.items():
        page.get_by_label(label, exact=True).fill(str(value))


def sent(page) -> dict:
    """The job that the button makes."""
    with page.expect_response(lambda one: one.request.method == "POST") as answer:
        page.get_by_role("button", name="Generate").click()
    assert answer.value.status == 200, answer.value.text()
    return answer.value.json()


def ask(page, prompt: str = PROMPT, steps: int = 3, **fields) -> dict:
    """The job that a form with these values makes."""
    filled(page, prompt, steps, **fields)
    return sent(page)


def told(server: Server, job: dict) -> dict:
    return server.told("GET", f"/v1/videos/{job['id']}")


def result(page, job: dict):
    """The player of a job's result, when there is one."""
    player = page.locator(f"#job[data-job={job['id']}]").get_by_label("the result")
    player.wait_for()
    return player


def plays(page, player) -> None:
    page.wait_for_function("player => player.currentTime > 0.1", arg=player.element_handle())


def frames(server: Server, job: dict) -> np.ndarray:
    return decoded(server.ask("GET", f"/v1/videos/{job['id']}/content")[1])[0]


@pytest.mark.slow
def test_from_a_prompt_to_a_playing_clip(server, opened):
    page = opened(server)
    assert page.locator("#model").inner_text() == "ltx2-mini, version 2.0 (dev) on cpu"
    job = ask(page, steps=30, Seed=7)
    page.get_by_role("progressbar").wait_for()
    page.get_by_text(re.compile(r"step \d+ of 30, about \d+ s left")).wait_for()
    page.get_by_alt_text("what the clip looks like so far").wait_for()
    player = result(page, job)
    plays(page, player)
    page.wait_for_function("player => player.webkitAudioDecodedByteCount > 0", arg=player.element_handle())
    assert player.evaluate("player => [player.muted, player.videoWidth, player.videoHeight]") == [False, 128, 128]
    assert "seed 7" in page.locator(".facts").inner_text()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"{job['id']}.mp4"
    assert download.value.path().read_bytes() == server.ask("GET", f"/v1/videos/{job['id']}/content")[1]
    assert (job["seconds"], job["size"]) == ("1.04167", "128x128")


@pytest.mark.slow
def test_a_picture_and_a_sound_are_dropped(server, opened, media):
    page = opened(server)
    for label, name, kind in (("Picture", "first.png", "image/png"), ("Sound", "tone.wav", "audio/wav")):
        content = base64.b64encode((media / name).read_bytes()).decode()
        zone = page.locator(".drop", has=page.get_by_label(label, exact=True))
        zone.dispatch_event("drop", {"dataTransfer": page.evaluate_handle(DROP, [name, kind, content])})
        page.get_by_text(name).wait_for()
    job = ask(page)
    result(page, job)
    assert job["mode"] == "pictures for a sound"
    page.locator(".drop", has=page.get_by_label("Sound", exact=True)).get_by_role("button", name="Remove").click()
    job = ask(page)
    result(page, job)
    assert job["mode"] == "video from its first frame"
    first = frames(server, job)[0]
    given = decoded((media / "clip.mp4").read_bytes())[0][0]
    assert np.abs(first.astype(int) - given.astype(int)).mean() < 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "files", "mode"),
    [
        ("Retake", {"Clip": "clip.mp4", "Where (optional)": "mask.png"}, "a stretch of a clip made anew"),
        ("Extend", {"Clip": "clip.mp4"}, "a clip made longer"),
        ("Add sound", {"Clip": "silent.mp4"}, "sound for a clip"),
        ("Sound only", {}, "sound from text"),
    ],
)
def test_everything_that_can_be_made_is_made(server, opened, media, task, files, mode):
    page = opened(server)
    page.get_by_role("radio", name=task).check()
    for label, name in files.items():
        page.get_by_label(label, exact=True).set_input_files(media / name)
    values = {"Frames to take over": 9, "Seconds to add": 0.5} if task == "Extend" else {}
    job = ask(page, **values)
    assert job["mode"] == mode
    plays(page, result(page, job))
    if values:
        made = server.told("GET", f"/v1/videos/{job['id']}/manifest")["request"]
        assert (made["overlap"], made["extend"]) == (9, 0.5)


@pytest.mark.slow
def test_a_result_is_the_start_of_the_next(server, opened):
    page = opened(server)
    first = ask(page)
    result(page, first)
    page.get_by_role("button", name="Use as start").click()
    page.get_by_text(f"{first['id']}.mp4").wait_for()
    assert page.get_by_role("radio", name="Extend").is_checked()
    longer = ask(page)
    result(page, longer)
    assert len(frames(server, longer)) > len(frames(server, first)) == 25


@pytest.mark.slow
def test_what_is_refused_is_said_at_its_field(server, opened):
    page = opened(server)
    before = server.told("GET", "/v1/videos?limit=100")["data"]
    filled(page, Width=100)
    page.get_by_role("button", name="Generate").click()
    width = page.get_by_label("Width", exact=True)
    page.get_by_text("“Width” has to be divisible by 32 but is 100; use 96 or 128").wait_for()
    assert width.get_attribute("aria-invalid") == "true"
    assert width.evaluate("field => field === document.activeElement")
    assert "use 96 or 128" in page.locator(f"#{width.get_attribute('aria-describedby').split()[1]}").inner_text()
    width.fill("128")
    page.get_by_text("Expert settings").click()
    filled(page, Sampler="best")
    page.get_by_role("button", name="Generate").click()
    page.locator("[data-field=sampler] .error").get_by_text("must be one of").wait_for()
    assert width.get_attribute("aria-invalid") == "false"
    assert server.told("GET", "/v1/videos?limit=100")["data"] == before


@pytest.mark.slow
def test_a_running_job_is_cancelled_and_found_again_after_a_reload(server, opened):
    page = opened(server)
    job = ask(page, steps=200)
    page.get_by_text(re.compile("step .* of 200")).wait_for()
    page.reload()
    page.get_by_text(re.compile("step .* of 200")).wait_for()
    assert page.locator("#job .prompt").inner_text() == PROMPT
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.").wait_for()
    assert told(server, job)["status"] == "cancelled"


@pytest.mark.slow
def test_jobs_are_kept_replayed_and_deleted(server, opened):
    page = opened(server)
    # Texts of people are no markup.
    prompt = "<img src=x onerror=alert(1)> a red circle"
    first = ask(page, prompt)
    result(page, first)
    page.reload()
    entry = page.locator(f"#history li[data-id={first['id']}]")
    assert entry.locator(".name").inner_text() == prompt
    entry.locator("canvas").wait_for()
    if "/v1/videos/{video_id}/replay" in routes(server):
        entry.get_by_role("button", name="Manifest").click()
        page.locator("#manifest").get_by_text(prompt).wait_for()
        page.get_by_role("button", name="Close").click()
        with page.expect_response(lambda one: one.url.endswith("/replay")) as answer:
            entry.get_by_role("button", name="Replay").click()
        again = answer.value.json()
        result(page, again)
        assert np.array_equal(frames(server, again), frames(server, first))
    else:
        assert entry.get_by_role("button").all_inner_texts()[1:] == ["Delete"]
    entry.get_by_role("button", name="Delete").click()
    entry.wait_for(state="detached")
    assert server.ask("GET", f"/v1/videos/{first['id']}")[0] == 404


@pytest.mark.slow
def test_a_storyboard_of_two_shots(server, opened, media):
    page = opened(server)
    choice = page.get_by_role("radio", name="Storyboard")
    page.get_by_role("radio", name="New clip").wait_for()
    assert choice.count() == ("/v1/storyboards" in routes(server))
    if not choice.count():
        return
    choice.check()
    page.get_by_role("button", name="Add a shot").click()
    page.get_by_role("button", name="Remove shot 3").click()
    texts = page.get_by_label("What to see and hear", exact=True)
    texts.nth(0).fill("a red circle turns on a blue background")
    texts.nth(1).fill(PROMPT)
    page.get_by_role("button", name="Move up shot 2").click()
    assert texts.nth(0).input_value() == PROMPT
    page.get_by_label("Seconds", exact=True).nth(0).fill("-1")
    # So many that the second shot takes a while, in which the first is shown.
    page.get_by_label("Steps", exact=True).fill("8")
    page.get_by_role("button", name="Generate").click()
    page.locator(".shots li").nth(0).locator(".error:visible").wait_for()
    page.get_by_label("Seconds", exact=True).nth(0).fill("1")
    page.get_by_label("Picture at its start (optional)", exact=True).nth(0).set_input_files(media / "first.png")
    page.get_by_label("Sound of the film (optional)", exact=True).set_input_files(media / "tone.wav")
    job = sent(page)
    page.get_by_label("finished shots").wait_for()
    plays(page, result(page, job))
    job = told(server, job)
    assert (job["status"], job["mode"], job["shots"]) == ("completed", "storyboard", {"finished": 2, "total": 2})
    assert abs(len(frames(server, job)) - 48) <= 4


@pytest.mark.slow
def test_loras_have_a_strength_and_what_does_not_fit_is_said_at_its_field(small, opened, media):
    page = opened(small, viewport={"width": 390, "height": 844}, has_touch=True)
    page.get_by_label("style", exact=True).check()
    page.get_by_label("strength of style").fill("0.5")
    made = ask(page, steps=100)
    page.get_by_role("radio", name="Storyboard").check()
    for text in page.get_by_label("What to see and hear", exact=True).all():
        text.fill(PROMPT)
    for label, value in {"Steps": 3, "Width": 2048, "Height": 2048}.items():
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_role("button", name="Generate").click()
    page.locator("[data-field=width] .error").get_by_text("GiB of memory").wait_for()
    for label in ("Width", "Height"):
        page.get_by_label(label, exact=True).fill("128")
    film = sent(page)
    page.get_by_text("Waiting to begin").wait_for()
    plays(page, result(page, film))
    assert small.told("GET", f"/v1/videos/{made['id']}/manifest")["request"]["adapters"] == {"style": 0.5}
    page.get_by_role("radio", name="Translate").check()
    page.get_by_label("Reference clip", exact=True).set_input_files(media / "clip.mp4")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    assert told(small, sent(page))["mode"] == "video after references"


@pytest.mark.slow
def test_a_key_is_asked_for_and_kept(guarded, opened):
    page = opened(guarded)
    for key in ("c" * 32, KEYS[0]):
        page.get_by_label("This server asks for a key").fill(key)
        page.get_by_role("button", name="Continue").click()
        if key not in KEYS:
            page.get_by_text("The server does not know this key.").wait_for()
    plays(page, result(page, ask(page)))
    page.reload()
    page.locator("#history canvas").wait_for()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
    page.get_by_role("button", name="Forget key").click()
    page.get_by_label("This server asks for a key").fill(KEYS[1])
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("Clips that you make are listed here").wait_for()
    assert page.locator("#history li").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 360, 768])
def test_a_phone_shows_all_of_it(server, opened, width):
    page = opened(server, viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True)
    player = result(page, ask(page))
    for task in page.get_by_role("radio").all():
        task.check()
        for part in page.locator("details:visible").all():
            part.evaluate("part => (part.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    player.scroll_into_view_if_needed()
    assert player.bounding_box()["width"] <= width


@pytest.mark.slow
def test_everything_has_a_name_and_the_keyboard_reaches_it(server, opened):
    page = opened(server)
    page.get_by_role("radio", name="New clip").wait_for()
    nameless = """() => [...document.querySelectorAll("input, textarea, select, button, a, progress")].filter((one) =>
        !(one.labels?.length && [...one.labels].every((label) => label.textContent.trim())) &&
        !one.textContent.trim() && !one.getAttribute("aria-label")).map((one) => one.outerHTML)"""
    assert page.evaluate(nameless) == []
    prompt = page.get_by_label("Prompt", exact=True)
    page.get_by_role("radio", name="New clip").focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_role("radio", name="Retake").is_checked()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    assert prompt.evaluate("field => field === document.activeElement")
    page.keyboard.type(PROMPT)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Generate":
            break
        if page.evaluate("document.activeElement.labels?.[0]?.textContent") == "Steps":
            page.keyboard.type("2")
    with page.expect_response(lambda one: one.request.method == "POST") as answer:
        page.keyboard.press("Enter")
    job = answer.value.json()
    assert job["prompt"] == PROMPT
    result(page, job)
