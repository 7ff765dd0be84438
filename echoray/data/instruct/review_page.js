"use strict";
// Texts of items are only ever set as textContent: what a model wrote is never markup.
const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
let reviewer = localStorage.getItem("echoray-reviewer") || "";
let place = -1;
let item = null;
let reasons = [];
let urls = [];
const last = []; // places of the decisions of this window, the latest at the end

async function call(path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  const options = body ? { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) } : { headers };
  const response = await fetch(path, options);
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ error: `HTTP ${response.status}`, hint: "" }));
  throw new Error(`${problem.error}. ${problem.hint}`);
}

// Actions run one after the other: a key that is pressed while an item loads is for that item.
let queue = Promise.resolve();
function attempt(action) {
  queue = queue.then(action).then(
    () => { $("message").textContent = ""; },
    (error) => {
      const lost = error.message === "Failed to fetch";
      $("message").textContent = lost ? "The server does not answer; nothing was saved. Try again." : error.message;
    },
  );
  return queue;
}

const as = () => `reviewer=${encodeURIComponent(reviewer)}`;

async function progress(after) {
  const found = await (await call(`/api/progress?after=${after}&${as()}`)).json();
  reasons = found.reasons;
  $("progress").textContent = `${found.decided} of ${found.total} reviewed by you`;
  $("bar").max = found.total;
  $("bar").value = found.decided;
  return found;
}

async function show(number) {
  item = await (await call(`/api/items/${number}?${as()}`)).json();
  place = number;
  for (const name of ["findings", "impression", "prompt", "answer"]) {
    $(name).textContent = item[name];
    $(name).lang = item.language === "zh" ? "zh-CN" : "en";
  }
  if (item.decision && item.decision.choice === "edit") {
    $("prompt").textContent = item.decision.prompt;
    $("answer").textContent = item.decision.answer;
  }
  $("kind").textContent = `${item.system}, ${item.part}, number ${number + 1}`;
  const said = item.decision;
  $("said").textContent = said ? `You said: ${said.choice}${said.reason ? ` (${said.reason.replaceAll("_", " ")})` : ""}` : "";
  close();
  $("main").hidden = false;
  pictures(number);
}

async function pictures(number) {
  urls.forEach((one) => URL.revokeObjectURL(one));
  urls = [];
  $("pictures").replaceChildren();
  for (let k = 0; k < item.pictures && number === place; k += 1) {
    const blob = await (await call(`/api/items/${number}/pictures/${k}`)).blob();
    if (number !== place) return;
    const image = document.createElement("img");
    image.alt = `ultrasound picture ${k + 1} of ${item.pictures}`;
    image.src = URL.createObjectURL(blob);
    urls.push(image.src);
    $("pictures").append(image);
  }
}

async function decide(values) {
  await call("/api/decisions", { item_id: item.item_id, reviewer, ...values });
  close();
  if (values.choice !== "withdraw") last.push(place);
  const found = await progress(place);
  if (values.choice === "withdraw" || found.next === null) await show(place);
  else await show(found.next);
  if (found.next === null) $("said").textContent += " All items are reviewed. Thank you.";
}

function close() {
  $("reasons").hidden = true;
  $("reject").setAttribute("aria-expanded", "false");
  if ($("editor").contains(document.activeElement)) $("accept").focus(); // else keys would still be typed there
  $("editor").hidden = true;
}

function choose() {
  close();
  $("reasons").replaceChildren(...reasons.map((reason, number) => {
    const button = document.createElement("button");
    const key = document.createElement("kbd");
    button.type = "button";
    key.textContent = String(number + 1);
    button.append(`${reason.replaceAll("_", " ")} `, key);
    button.addEventListener("click", () => attempt(() => decide({ choice: "reject", reason })));
    return button;
  }));
  $("reasons").hidden = false;
  $("reject").setAttribute("aria-expanded", "true");
}

function edit() {
  close();
  $("new-prompt").value = $("prompt").textContent;
  $("new-answer").value = $("answer").textContent;
  $("editor").hidden = false;
  $("new-answer").focus();
}

const save = () => decide({ choice: "edit", prompt: $("new-prompt").value, answer: $("new-answer").value });
const total = () => Number($("bar").max);
const actions = {
  a: () => decide({ choice: "accept" }),
  r: choose,
  e: edit,
  u: undo,
  j: () => show((place + 1) % total()),
  k: () => show((place + total() - 1) % total()),
};

// Undo withdraws what was said of the item that is shown; where nothing was, of the one decided before.
async function undo() {
  if (!item.decision && last.length) await show(last.pop());
  if (item.decision) await decide({ choice: "withdraw" });
}

document.addEventListener("keydown", (event) => {
  if ($("main").hidden) return;
  if (event.key === "Escape") { close(); return; }
  if (event.target.matches("textarea, input")) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); attempt(save); }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = { ArrowRight: "j", ArrowLeft: "k" }[event.key] || event.key;
  if (!actions[key] && !/^[1-9]$/.test(key)) return;
  event.preventDefault();
  attempt(() => press(key));
});

function press(key) {
  if (actions[key]) return actions[key]();
  const reason = reasons[Number(key) - 1];
  return $("reasons").hidden || !reason ? undefined : decide({ choice: "reject", reason });
}

const buttons = { accept: "a", reject: "r", edit: "e", undo: "u", next: "j", previous: "k" };
for (const [id, key] of Object.entries(buttons)) $(id).addEventListener("click", () => attempt(actions[key]));
$("cancel").addEventListener("click", close);
$("editor").addEventListener("submit", (event) => { event.preventDefault(); attempt(save); });
$("who").addEventListener("submit", (event) => { event.preventDefault(); reviewer = $("reviewer").value.trim(); attempt(begin); });

async function begin() {
  const found = await progress(-1);
  localStorage.setItem("echoray-reviewer", reviewer);
  $("who").hidden = true;
  await show(found.next === null ? 0 : found.next);
}

if (reviewer) attempt(begin).then(() => { if (place < 0) $("who").hidden = false; });
else { $("who").hidden = false; $("reviewer").focus(); }
