// The form: what can be made, and the request that says so.
import { post, Refused } from "./api.js";
import { byId, el, show } from "./dom.js";
import { adaptersField, fileField, plainField, words } from "./fields.js";
import { storyboard } from "./storyboard.js";

// What can be made, by the field that asks for it; one that the server does not know is not shown.
const TASKS = [
  { id: "new", label: "New clip", about: "from text, a picture, a sound, or all of them", media: ["image", "last", "audio", "audio_fit"], sized: true },
  { id: "retake", needs: "retake", label: "Retake", about: "make a part of your clip anew", media: ["video", "from", "to", "keep", "region"] },
  { id: "extend", needs: "extend", label: "Extend", about: "make your clip longer", media: ["video", "extend", "overlap", "backwards"] },
  { id: "add_sound", needs: "add_sound", label: "Add sound", about: "make the sound of your clip", media: ["video"], unseen: true },
  { id: "reference", needs: "reference", adapters: true, label: "Translate", about: "follow a reference clip, with an IC-LoRA", media: ["reference", "image"], sized: true },
  { id: "audio_only", needs: "audio_only", label: "Sound only", about: "no pictures", media: ["duration"], unseen: true },
  { id: "storyboard", route: "/v1/storyboards", label: "Storyboard", about: "a film of several shots", sized: true },
];
const PICTURES = "image/png,image/jpeg,image/webp";
const CLIPS = "video/*";
const SOUNDS = "audio/*";
// Where what the server says of a field is shown, if its field has another name here.
const PLACES = { retake: "from", num_frames: ["seconds", "width"], image_at: "last", keep_audio: "keep", keep_video: "keep", size: "width", num_inference_steps: "steps" };
// Fields that the page gives in its own way, or not at all.
const OWN = ["model", "prompt", "seconds", "size", "input_reference", "adapters", "stream", "preview_every", "retake", "extend", "add_sound", "audio_only", "keep_video", "keep_audio"];
// Fields whose values have another form, or hang on another field.
const LATER = ["audio_fit", "reference"];
// What stands under "More"; the rest is for experts.
const COMMON = ["enhance_prompt", "no_audio", "distilled", "interpolate", "num_frames", "frame_rate", "motion_speed"];
const PREVIEWS = 8;

/** Fill the form; `onJob` is told of every new job. Returns what others put into it. */
export function makeForm({ properties, defaults, limits, adapters, routes }, onJob) {
  const form = byId("make");
  const fields = {};
  const known = (name) => properties[name] !== undefined;
  const add = (field) => (fields[field.name] = field);
  const plain = (name, how) => known(name) && add(plainField(name, properties[name], { placeholder: defaults[name], ...how }));
  const file = (name, label, accept, hint, given) => add(fileField(name, { label, accept, hint, given, most: limits.max_media_mb }));

  add(plainField("prompt", { type: "string" }, { label: "Prompt", rows: 4, hint: "What to see and hear. Say what moves, and how it sounds.", placeholder: "a red circle bounces on a blue background" }));
  file("image", "Picture", PICTURES, "The first frame.");
  file("last", "Last picture", PICTURES, "The last frame.");
  file("audio", "Sound", SOUNDS, "The pictures are made to it.", () => arrange());
  plain("audio_fit", { label: "If it is shorter than the clip", hint: "Pad: silence follows. Stretch: another tempo. Crop: refuse it." });
  fields.audio_fit?.set("pad");
  file("video", "Clip", CLIPS, "The clip to work on.");
  file("reference", "Reference clip", CLIPS);
  file("region", "Where (optional)", PICTURES, "A picture that is white where the clip is to change.");
  add(plainField("from", { type: "number" }, { label: "From second", min: 0, step: 0.1, value: 0 }));
  add(plainField("to", { type: "number" }, { label: "To second", min: 0, step: 0.1, value: 1 }));
  add(plainField("keep", { enum: ["pictures", "sound"] }, { label: "Leave alone" }));
  fields.keep.control.options[0].textContent = "nothing";
  plain("extend", { label: "Seconds to add", min: 0, step: 0.5, value: 1, hint: "Rounded up to parts of 8 frames." });
  plain("overlap", { label: "Frames to take over", step: 8, min: 1 });
  plain("backwards", { label: "Add them before the start", hint: "" });
  plain("duration", { label: "Length in seconds", min: 0, step: 0.5 });

  plain("width", { label: "Width", step: 32, min: 32, value: defaults.width, hint: "pixels" });
  plain("height", { label: "Height", step: 32, min: 32, value: defaults.height, hint: "pixels" });
  add(plainField("seconds", { type: "number" }, { label: "Length", min: 0, step: 0.5, value: Number((defaults.num_frames / defaults.frame_rate).toFixed(2)), hint: "seconds" }));
  plain("steps", { label: "Steps", min: 1, max: limits.max_steps, hint: "more take longer" });
  plain("guidance_scale", { label: "Guidance", step: 0.5, hint: "how closely to follow the text" });
  plain("seed", { label: "Seed", placeholder: "random", hint: "equal seeds give equal clips" });
  plain("two_stage", { label: "Two stages", hint: "Small first, then refined: for large clips. Sides are multiples of 64." });
  add(plainField("preview", { type: "boolean" }, { label: "Show the clip while it is made", value: true, hint: "" }));
  if (adapters.length) add(adaptersField(adapters));
  plain("negative_prompt", { label: "Negative prompt", rows: 2 });

  const board = routes.includes("/v1/storyboards") ? storyboard(limits) : null;
  const rest = Object.keys(properties).filter((name) => !fields[name] && !OWN.includes(name) && !holdsMedia(properties[name]));
  for (const name of rest) plain(name);

  const tasks = TASKS.filter((one) => (!one.needs || known(one.needs)) && (!one.route || routes.includes(one.route)) && (!one.adapters || adapters.length));
  byId("tasks").append(...tasks.map((one, index) => el("label", {}, el("input", { type: "radio", name: "task", value: one.id, checked: index === 0, onchange: arrange }), el("b", {}, one.label), el("span", {}, one.about))));
  const task = () => tasks.find((one) => one.id === new FormData(form).get("task"));

  const media = el("div", { className: "media" }, ...["image", "last", "audio", "audio_fit", "video", "reference", "from", "to", "keep", "region", "extend", "overlap", "backwards", "duration"].filter((name) => fields[name]).map((name) => fields[name].element));
  const shapes = el("div", { className: "row", role: "group", "aria-label": "Shape" }, ...["Landscape", "Square", "Portrait"].map((name) => el("button", { type: "button", className: "small", onclick: () => shape(name) }, name)));
  const grid = (...names) => el("div", { className: "grid" }, ...names.filter((name) => fields[name]).map((name) => fields[name].element));
  const size = el("div", {}, grid("width", "height", "seconds"), shapes);
  const more = el("details", {}, el("summary", {}, "More"), ...["negative_prompt"].filter((name) => fields[name]).map((name) => fields[name].element), grid(...COMMON));
  const expert = el("details", {}, el("summary", {}, "Expert settings"), grid(...rest.filter((name) => !COMMON.includes(name))));
  const settings = [size, grid("steps", "guidance_scale", "seed"), ...["two_stage", "adapters", "preview"].filter((name) => fields[name]).map((name) => fields[name].element), more, expert];
  byId("fields").append(fields.prompt.element, ...(board ? [board.element] : []), media, ...settings);

  function shape(name) {
    const [long, short] = [Math.max(defaults.width, defaults.height), Math.min(defaults.width, defaults.height)];
    // A square default has no other shapes; 3 : 2 of it, in steps that two stages take, too.
    const other = long === short ? Math.max(64, Math.floor((long * 2) / 3 / 64) * 64) : short;
    fields.width.set(name === "Portrait" || name === "Square" ? (name === "Square" ? short : other) : long);
    fields.height.set(name === "Portrait" ? long : name === "Square" ? short : other);
  }

  function arrange() {
    const { id, media: wanted = [], sized = false, unseen = false } = task();
    for (const element of media.children) show(element, wanted.includes(element.dataset.field));
    if (fields.audio_fit) show(fields.audio_fit.element, wanted.includes("audio_fit") && fields.audio.holds());
    show(fields.prompt.element, id !== "storyboard");
    if (board) show(board.element, id === "storyboard");
    show(size, sized);
    show(fields.seconds.element, id !== "storyboard");
    if (fields.two_stage) show(fields.two_stage.element, !unseen);
    show(fields.preview.element, !unseen);
    for (const part of [more, expert]) show(part, id !== "storyboard");
    if (fields.adapters) show(fields.adapters.element, id !== "storyboard");
    refuse([]);
  }

  function refuse(details) {
    Object.values(fields).forEach((field) => field.refuse(null));
    board?.refuse([]);
    const general = [];
    let first = null;
    for (const { loc, msg } of details) {
      const name = [loc[1], PLACES[loc[1]]].flat().find((one) => fields[one] && isShown(fields[one].element));
      if (task().id === "storyboard" && board.refuse([{ loc, msg }])) continue;
      if (!name) {
        general.push(loc.length > 1 ? `${loc.slice(1).join(", ")}: ${msg}` : msg);
        continue;
      }
      fields[name].element.closest("details")?.setAttribute("open", "");
      fields[name].refuse(readable(msg, properties, fields));
      first ??= fields[name];
    }
    byId("refused").textContent = general.join("\n");
    show(byId("refused"), general.length);
    if (first) {
      first.element.scrollIntoView({ block: "center" });
      first.focus();
    }
  }

  async function body() {
    const { id, media: wanted = [], sized = false, unseen = false } = task();
    const given = {};
    const take = async (name, to = name) => {
      const value = fields[name] && (await fields[name].value());
      if (value !== undefined) given[to] = value;
      return value;
    };
    for (const name of ["prompt", "steps", "guidance_scale", "seed", "adapters", "negative_prompt", ...rest]) await take(name);
    given.prompt ??= "";
    if (sized) for (const name of ["width", "height"]) await take(name);
    if (sized && given.num_frames === undefined && !given.auto_length) await take("seconds");
    if (!unseen) await take("two_stage");
    for (const name of wanted) if (known(name) && !LATER.includes(name)) await take(name);
    if (given.audio) await take("audio_fit");
    if (wanted.includes("last")) {
      const media = await fields.last.value();
      if (media) given.image_at = [{ frame: -1, media }];
    }
    if (wanted.includes("reference")) {
      const media = await fields.reference.value();
      given.reference = media ? [{ media }] : [];
    }
    if (id === "retake") {
      given.retake = [fields.from.value() ?? 0, fields.to.value() ?? 0];
      const keep = fields.keep.value();
      if (keep) given[keep === "sound" ? "keep_audio" : "keep_video"] = true;
    }
    if (id === "add_sound" || id === "audio_only") given[id] = true;
    if (!unseen && fields.preview.value()) given.preview_every = previewEvery(given.steps);
    return given;
  }

  const previewEvery = (steps) => Math.ceil((steps > 0 ? steps : defaults.steps) / PREVIEWS);

  async function film() {
    const given = await board.value();
    for (const [name, to] of [["width"], ["height"], ["seed"], ["steps", "num_inference_steps"], ["guidance_scale"], ["two_stage"]]) {
      const value = fields[name]?.value();
      if (value !== undefined) given[to ?? name] = value;
    }
    // A storyboard has a seed of its own, where other jobs have a random one.
    given.seed ??= Math.floor(Math.random() * 2 ** 32);
    if (fields.preview.value()) given.preview_every = previewEvery(given.num_inference_steps);
    return given;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button[type=submit]");
    button.disabled = true;
    try {
      const job = task().id === "storyboard" ? await post("/v1/storyboards", await film()) : await post("/v1/videos", await body());
      refuse([]);
      onJob(job);
    } catch (error) {
      refuse(error instanceof Refused ? withWait(error) : [{ loc: [], msg: "The server cannot be reached. Is it running?" }]);
    } finally {
      button.disabled = false;
    }
  });
  arrange();

  return {
    /** Put a clip into the form. */
    work(id, clip) {
      form.querySelector(`input[value=${id}]`).checked = true;
      arrange();
      fields.video.set(clip);
      form.scrollIntoView({ behavior: "smooth" });
      fields.prompt.focus();
    },
    can: (id) => tasks.some((one) => one.id === id),
  };
}

const isShown = (element) => element.closest("[hidden]") === null;

const holdsMedia = (schema) => JSON.stringify(schema).includes("data:image") || JSON.stringify(schema).includes("$ref");

const withWait = ({ details, retryAfter }) => (retryAfter ? details.map((one) => ({ ...one, msg: `${one.msg}; try again in ${retryAfter} s` })) : details);

/** A reason in which names of fields are the labels of this page. */
const readable = (text, properties, fields) =>
  text.replace(/`(\w+)`/g, (whole, name) => {
    const label = [name, PLACES[name]].flat().map((one) => fields[one]).find(Boolean)?.element.querySelector("label")?.textContent;
    return label ? `“${label}”` : properties[name] ? `“${words(name)}”` : whole;
  });
