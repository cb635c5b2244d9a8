// Shots of a film, in their order.
import { el, show } from "./dom.js";
import { fileField, plainField } from "./fields.js";

export function storyboard(limits) {
  const list = el("ol", { className: "shots" });
  const most = limits.max_media_mb;
  const sound = fileField("board-audio", { label: "Sound of the film (optional)", accept: "audio/*", most, hint: "One sound for all shots; silence follows a shorter one." });
  const error = show(el("p", { className: "error", role: "alert" }), false);
  let shots = [];

  function shot() {
    const prompt = plainField("shot-prompt", { type: "string" }, { label: "What to see and hear", rows: 2 });
    const length = plainField("shot-duration", { type: "number" }, { label: "Seconds", value: 1, min: 0, step: 0.5 });
    const keyframe = fileField("shot-keyframe", { label: "Picture at its start (optional)", accept: "image/png,image/jpeg,image/webp", most });
    const one = { prompt, length, keyframe };
    const button = (text, about, act) => el("button", { type: "button", className: "small", "aria-label": about, onclick: act }, text);
    const move = (by) => () => {
      const place = shots.indexOf(one);
      shots.splice(place, 1);
      shots.splice(place + by, 0, one);
      arrange();
      one[by < 0 ? "up" : "down"].focus();
    };
    one.up = button("Up", "", move(-1));
    one.down = button("Down", "", move(1));
    one.remove = button("Remove", "", () => {
      shots = shots.filter((other) => other !== one);
      arrange();
      shots[0].prompt.focus();
    });
    one.title = el("b", {});
    one.element = el("li", {}, el("div", { className: "row" }, one.title, one.up, one.down, one.remove), prompt.element, length.element, keyframe.element);
    return one;
  }

  function arrange() {
    list.replaceChildren(...shots.map((one) => one.element));
    shots.forEach((one, index) => {
      one.title.textContent = `Shot ${index + 1}`;
      for (const [name, text] of [["up", "Move up shot"], ["down", "Move down shot"], ["remove", "Remove shot"]]) one[name].setAttribute("aria-label", `${text} ${index + 1}`);
      one.up.disabled = index === 0;
      one.down.disabled = index === shots.length - 1;
      one.remove.disabled = shots.length === 1;
    });
  }

  const add = el("button", { type: "button", onclick: () => {
    shots.push(shot());
    arrange();
    shots.at(-1).prompt.focus();
  } }, "Add a shot");
  shots = [shot(), shot()];
  arrange();

  return {
    element: el("div", { className: "board" }, list, add, sound.element, error),
    async value() {
      const given = { shots: [] };
      for (const { prompt, length, keyframe } of shots) {
        const image = await keyframe.value();
        given.shots.push({ prompt: prompt.value() ?? "", duration_s: length.value() ?? 0, ...(image ? { keyframes: [{ image }] } : {}) });
      }
      const audio = await sound.value();
      return audio ? { ...given, audio, audio_fit: "pad" } : given;
    },
    /** Show what is wrong at its shot; whether there is a place for it. */
    refuse(details) {
      if (!details.length) for (const one of [sound, ...shots.flatMap(({ prompt, length, keyframe }) => [prompt, length, keyframe])]) one.refuse(null);
      show(error, false);
      let placed = false;
      for (const { loc, msg } of details) {
        // Shots are counted from 1 in texts, and from 0 in places.
        const number = loc[1] === "shots" && Number.isInteger(loc[2]) ? loc[2] : Number(/shot (\d+)/.exec(msg)?.[1]) - 1;
        const one = shots[number];
        const part = `${loc[3] ?? ""} ${msg}`;
        if (loc[1] === "audio") sound.refuse(msg);
        else if (one) (/keyframe|image/.test(part) ? one.keyframe : /duration/.test(part) ? one.length : one.prompt).refuse(msg);
        else if (loc[1] === "shots") {
          error.textContent = msg;
          show(error, true);
        } else continue;
        placed = true;
      }
      return placed;
    },
  };
}
