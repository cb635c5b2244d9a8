// A job that is watched, and what comes of it.
import { events, post, request, told } from "./api.js";
import { byId, duration, el, show } from "./dom.js";

const ENDED = ["completed", "failed", "cancelled"];
const LOOK_AGAIN_MS = 1500;

/** Shows one job at a time. `routes` are those of the server; `changed` is told when a job has changed. */
export function makeViewer({ routes, form, changed }) {
  const place = byId("job-body");
  let current = null;
  let watching = null;
  let urls = [];

  function clear() {
    watching?.abort();
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls = [];
  }

  function empty() {
    clear();
    current = null;
    delete byId("job").dataset.job;
    place.replaceChildren(el("p", { className: "hint empty" }, "Write a prompt and press Generate. The clip is shown here while it is made, and played when it is done."));
  }

  const about = (job) => el("p", { className: "prompt" }, job.prompt);
  const button = (text, act, className = "") => el("button", { type: "button", className, onclick: guarded(act) }, text);

  /** What goes wrong with a button is said where it is. */
  function guarded(act) {
    return async (event) => {
      const pressed = event.currentTarget;
      pressed.disabled = true;
      try {
        await act();
      } catch (error) {
        place.append(el("p", { className: "error", role: "alert" }, error.message));
      } finally {
        pressed.disabled = false;
      }
    };
  }

  async function open(job, { play = false } = {}) {
    clear();
    current = job.id;
    byId("job").dataset.job = job.id;
    if (ENDED.includes(job.status)) await ended(job, play);
    else await watch(job);
  }

  async function watch(job) {
    const aborter = (watching = new AbortController());
    const bar = el("progress", { max: 100, value: job.progress, "aria-label": "progress" });
    const state = el("p", { className: "state", role: "status" });
    const preview = show(el("img", { className: "preview", alt: "what the clip looks like so far" }), false);
    const shots = el("div", { className: "film" });
    const cancel = button("Cancel", async () => {
      await post(`/v1/videos/${job.id}/cancel`);
    });
    place.replaceChildren(about(job), bar, state, preview, shots, el("div", { className: "row" }, cancel));
    const waits = async () => {
      const { queued } = await told("/health");
      if (job.status === "queued") state.textContent = queued > 1 ? `Waiting; ${queued} jobs are in the queue` : "Waiting to begin";
    };
    const film = job.shots ? filmOf(job, shots) : null;
    let begun = null;
    const tell = ({ progress, step, steps, run }) => {
      const now = performance.now();
      begun ??= { now, progress };
      bar.value = progress;
      const left = progress > begun.progress ? ((now - begun.now) * (100 - progress)) / (progress - begun.progress) / 1000 : null;
      const stage = run > 1 ? `part ${run}, ` : "";
      state.textContent = progress >= 99 ? "Decoding pictures and sound" : `${stage}step ${step} of ${steps}${left === null ? "" : `, about ${duration(left)} left`}`;
    };
    state.textContent = job.status === "queued" ? "Waiting to begin" : "Running";
    for (;;) {
      try {
        for await (const [kind, event] of events(job.id, aborter.signal)) {
          if (kind === "progress") tell(event);
          if (kind === "preview") {
            preview.src = event.image;
            show(preview, true);
          }
          if (kind === "status") {
            job = event;
            changed(job);
            if (job.status === "queued") await waits();
          }
          if (film) await film.look(kind === "shot");
        }
        job = await told(`/v1/videos/${job.id}`, { signal: aborter.signal });
      } catch (error) {
        if (aborter.signal.aborted) return;
        if (error.status === 404) {
          empty();
          changed(null);
          return;
        }
        state.textContent = "The connection is lost; trying again";
      }
      if (aborter.signal.aborted) return;
      if (ENDED.includes(job.status)) break;
      await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
    }
    watching = null;
    changed(job);
    await open(job, { play: true });
  }

  /** Finished shots of a film, played one after another as they come. */
  function filmOf(job, element) {
    const video = el("video", { controls: true, playsInline: true, "aria-label": "finished shots" });
    const label = el("p", { className: "hint" });
    const blobs = [];
    let at = 0;
    let last = 0;
    let waiting = true;
    const play = (index) => {
      at = index;
      waiting = index >= blobs.length;
      if (waiting) return;
      video.src = blobs[index];
      label.textContent = `Shot ${index + 1} of ${job.shots.total}`;
      video.play().catch(() => {});
    };
    video.addEventListener("ended", () => play(at + 1));
    return {
      async look(atOnce) {
        if (!atOnce && performance.now() - last < LOOK_AGAIN_MS) return;
        last = performance.now();
        const { shots } = await told(`/v1/videos/${job.id}`);
        while (shots && blobs.length < shots.finished) {
          const blob = await (await request(`/v1/videos/${job.id}/shots/${blobs.length + 1}/content`)).blob();
          const url = URL.createObjectURL(blob);
          blobs.push(url);
          urls.push(url);
          if (blobs.length === 1) element.replaceChildren(video, label);
          if (waiting) play(at);
        }
      },
    };
  }

  async function ended(job, play) {
    if (job.status !== "completed") {
      const text = job.status === "cancelled" ? "Cancelled." : `It failed: ${job.error?.message ?? "the log of the server says why"}`;
      place.replaceChildren(about(job), el("p", { className: job.status === "failed" ? "error" : "state", role: "status" }, text));
      return;
    }
    const actions = el("div", { className: "row" });
    const frame = el("div", { className: "frame" }, el("p", { className: "hint" }, "Fetching the clip"));
    place.replaceChildren(frame, about(job), facts(job), actions);
    const aborter = (watching = new AbortController());
    try {
      const blob = await (await request(`/v1/videos/${job.id}/content`, { signal: aborter.signal })).blob();
      if (aborter.signal.aborted) return;
      const url = URL.createObjectURL(blob);
      urls.push(url);
      const isSound = blob.type.startsWith("audio");
      const player = el(isSound ? "audio" : "video", { src: url, controls: true, loop: true, playsInline: true, "aria-label": "the result" });
      frame.replaceChildren(player);
      // A browser may want to be asked first, by its own button.
      if (play) player.play().catch(() => {});
      const name = `${job.id}.${isSound ? "wav" : "mp4"}`;
      actions.append(el("a", { className: "button", href: url, download: name }, "Download"));
      actions.append(...again(job));
      const clip = () => new File([blob], name, { type: blob.type });
      if (!isSound && form.can("extend")) actions.append(button("Use as start", async () => form.work("extend", clip())));
      if (!isSound && form.can("retake")) actions.append(button("Retake a part", async () => form.work("retake", clip())));
    } catch (error) {
      if (!aborter.signal.aborted) frame.replaceChildren(el("p", { className: "error", role: "alert" }, error.message));
    }
  }

  const again = (job) => (routes.includes("/v1/videos/{video_id}/replay") ? [button("Again with the same seed", () => replay(job))] : []);

  async function replay(job) {
    const next = await post(`/v1/videos/${job.id}/replay`);
    changed(next);
    open(next);
  }

  const facts = (job) => el("p", { className: "hint facts" }, [job.mode, job.size?.replace("x", " × "), job.seconds && `${Number(job.seconds).toFixed(2)} s`, `seed ${job.seed}`].filter(Boolean).join(" · "));

  /** Bring the job into sight, where it is not beside the form. */
  function reveal() {
    const { top } = byId("job").getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) byId("job").scrollIntoView({ behavior: "smooth" });
  }

  empty();
  return { open, replay, empty, shows: (id) => current === id, reveal };
}
