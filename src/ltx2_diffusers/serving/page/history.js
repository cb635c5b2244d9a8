// The jobs of this key, newest first.
import { request, told } from "./api.js";
import { byId, el, show } from "./dom.js";

const PAGE = 12;
const LARGEST_THUMBNAIL_MB = 32;
const STATES = { queued: "waiting", in_progress: "running", completed: "", failed: "failed", cancelled: "cancelled" };

export function makeHistory({ routes }) {
  const list = byId("history");
  const items = new Map();
  let viewer = null;
  let last = null;
  const pending = [];
  let drawing = false;

  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      pending.push(target.dataset.id);
    }
    draw();
  });

  /** Draw pictures of clips, one at a time. */
  async function draw() {
    if (drawing) return;
    drawing = true;
    while (pending.length) {
      const item = items.get(pending.shift());
      if (item) await thumbnail(item).catch(() => {});
    }
    drawing = false;
  }

  async function thumbnail({ job, picture }) {
    if (!job.size) return;
    const aborter = new AbortController();
    const answer = await request(`/v1/videos/${job.id}/content`, { signal: aborter.signal });
    if (Number(answer.headers.get("content-length")) > LARGEST_THUMBNAIL_MB * 2 ** 20) {
      aborter.abort();
      return;
    }
    const url = URL.createObjectURL(await answer.blob());
    const video = el("video", { muted: true, preload: "auto", src: url });
    try {
      await new Promise((resolve, reject) => {
        video.onloadeddata = () => (video.currentTime = video.duration / 2);
        video.onseeked = resolve;
        video.onerror = reject;
      });
      const [width, height] = [160, Math.round((160 * video.videoHeight) / video.videoWidth)];
      const canvas = el("canvas", { width, height });
      canvas.getContext("2d").drawImage(video, 0, 0, width, height);
      picture.replaceChildren(canvas);
    } finally {
      URL.revokeObjectURL(url);
    }
  }

  async function manifest(job) {
    const text = JSON.stringify(await told(`/v1/videos/${job.id}/manifest`), null, 2);
    byId("manifest").textContent = text;
    const file = byId("manifest-file");
    URL.revokeObjectURL(file.href);
    file.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    file.download = `${job.id}.json`;
    byId("manifest-dialog").showModal();
  }

  function item(job) {
    const made = { job };
    made.picture = el("span", { className: "thumb", "aria-hidden": "true" });
    made.text = el("span", { className: "name" });
    made.state = el("span", { className: "hint" });
    const openButton = el("button", { type: "button", className: "open", onclick: () => {
      viewer.open(made.job, { play: true });
      viewer.reveal();
    } }, made.picture, el("span", { className: "words" }, made.text, made.state));
    const act = (text, does) => el("button", { type: "button", className: "small", onclick: async () => {
      try {
        await does();
      } catch (error) {
        made.state.textContent = error.message;
      }
    } }, text);
    made.actions = el("div", { className: "row" });
    if (routes.includes("/v1/videos/{video_id}/manifest")) made.actions.append((made.manifest = act("Manifest", () => manifest(made.job))));
    if (routes.includes("/v1/videos/{video_id}/replay")) made.actions.append((made.replay = act("Replay", () => viewer.replay(made.job).then(viewer.reveal))));
    made.actions.append(act("Delete", () => remove(made.job)));
    made.element = el("li", { data: { id: job.id } }, openButton, made.actions);
    return made;
  }

  async function remove(job) {
    await request(`/v1/videos/${job.id}`, { method: "DELETE" });
    items.get(job.id)?.element.remove();
    items.delete(job.id);
    if (viewer.shows(job.id)) viewer.empty();
    show(byId("no-history"), items.size === 0);
  }

  /** Show a job as it is now. */
  function put(job, first = true) {
    let entry = items.get(job.id);
    if (!entry) {
      items.set(job.id, (entry = item(job)));
      if (first) list.prepend(entry.element);
      else list.append(entry.element);
    }
    const before = entry.shown;
    entry.job = job;
    entry.shown = job.status;
    entry.text.textContent = job.prompt || "no prompt";
    const when = new Date(job.created_at * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
    entry.state.textContent = [STATES[job.status], when, job.size?.replace("x", " × ")].filter(Boolean).join(" · ");
    // What is not finished has neither.
    for (const button of [entry.manifest, entry.replay]) if (button) show(button, job.status === "completed");
    if (job.status === "completed" && before !== "completed") seen.observe(entry.element);
    show(byId("no-history"), false);
  }

  async function page() {
    const { data, has_more: more } = await told(`/v1/videos?limit=${PAGE}${last ? `&after=${last}` : ""}`);
    data.forEach((job) => put(job, false));
    last = data.at(-1)?.id ?? last;
    show(byId("more-history"), more);
    show(byId("no-history"), items.size === 0);
    return data;
  }

  byId("more-history").addEventListener("click", page);
  byId("manifest-close").addEventListener("click", () => byId("manifest-dialog").close());
  return { put, page, use: (one) => (viewer = one) };
}
