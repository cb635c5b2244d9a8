// The page: reads what the server can do, then puts the parts together.
import { forgetKey, told } from "./api.js";
import { byId } from "./dom.js";
import { makeForm } from "./form.js";
import { makeHistory } from "./history.js";
import { makeViewer } from "./job.js";

// A file that misses its place would otherwise replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
byId("forget-key").addEventListener("click", forgetKey);

async function start() {
  const { paths, components } = await told("/openapi.json");
  const { model, checkpoint_kind: kind, checkpoint_version: version, device, adapters } = await told("/health");
  byId("model").textContent = `${model}, version ${version} (${kind}) on ${device}`;
  const { properties, "x-defaults": defaults, "x-limits": limits } = components.schemas.VideoRequest;
  const routes = Object.keys(paths);
  let viewer = null;
  const form = makeForm({ properties, defaults, limits, adapters, routes }, (job) => {
    history.put(job);
    viewer.open(job);
    viewer.reveal();
  });
  const history = makeHistory({ routes });
  viewer = makeViewer({ routes, form, changed: (job) => job && history.put(job) });
  history.use(viewer);
  const jobs = await history.page();
  // A job that runs is picked up again, else the newest is shown.
  const next = jobs.find((job) => job.status === "in_progress") ?? jobs.find((job) => job.status === "queued") ?? jobs[0];
  if (next) await viewer.open(next);
}

start().catch((error) => {
  byId("model").textContent = `The server cannot be reached: ${error.message}`;
});
