// The page: settings on the left, one row of answers per prompt, every model beside the others.

import { describe, saveKey, stream } from "/page/api.js";

const $ = (id) => document.getElementById(id);
const STORE = "smelt.settings";
const SAVED = ["sites", "ratio", "layer", "op", "scope", "live", "format", "temperature", "max-tokens", "seed", "system"];
const OF_BLEND = ["sites", "ratio", "layer", "op", "scope"];

let server = null; // what /v1/latent says
let turns = []; // {prompt, system, format, answers: {model: Answer}}
let running = new Set(); // AbortControllers of answers on their way
let sent = []; // prompts, for the arrow key
let recall = 0;
let debounce = 0;

// ---------------------------------------------------------------- settings

const value = (id) => ($(id).type === "checkbox" ? $(id).checked : $(id).value);

function remember() {
  localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(SAVED.map((id) => [id, value(id)]))));
}

function restore() {
  let saved = {};
  try {
    saved = JSON.parse(localStorage.getItem(STORE)) ?? {};
  } catch {
    localStorage.removeItem(STORE);
  }
  for (const id of SAVED) {
    if (!(id in saved)) continue;
    const field = $(id);
    if (field.type === "checkbox") field.checked = Boolean(saved[id]);
    else if (field.tagName !== "SELECT" || [...field.options].some((o) => o.value === saved[id])) field.value = saved[id];
  }
}

function layerNow() {
  return server.layers[Number($("layer").value)];
}

function layerName(layer) {
  return layer === server.depth ? `${layer} of ${server.depth} (last)` : `${layer} of ${server.depth}`;
}

function showSettings() {
  const ratio = Number($("ratio").value);
  $("ratio-value").textContent = ratio.toFixed(2);
  document.documentElement.style.setProperty("--share", `${Math.round(ratio * 100)}%`);
  const layer = layerNow();
  $("layer-value").textContent = layerName(layer);
  $("layer").setAttribute("aria-valuetext", layerName(layer));
  const idle = server.idle_layers.includes(layer);
  $("layer-note").hidden = !idle;
  $("layer-note").textContent = idle ? "No effect here: so far base and donor are equal." : "";
  const served = value("sites") === "served";
  for (const id of ["layer", "op"]) $(id).disabled = served;
}

function latentNow() {
  const ratio = Number($("ratio").value);
  if (value("sites") === "served") return { scope: value("scope"), beta: shares(ratio, null) };
  const op = value("op");
  const site = { layer: layerNow(), op, weights: [].concat(shares(op === "regmean" ? 0.5 : ratio, op)) };
  return { scope: value("scope"), sites: [site], ...(op === "regmean" ? { beta: shares(ratio, op) } : {}) };
}

/** The ratio as one weight per donor, evenly. */
function shares(ratio, op) {
  const count = server.donors.length;
  return count === 1 || op === "proxy" ? ratio : Array(count).fill(ratio / count);
}

function settingsText() {
  const ratio = Number($("ratio").value).toFixed(2);
  if (value("sites") === "served") return `as served · ratio ${ratio}`;
  return `${$("op").value} · layer ${layerName(layerNow())} · ratio ${ratio}`;
}

function fillSettings() {
  const sites = server.latent.sites ?? [];
  const first = sites[0] ?? { layer: server.depth, op: "slerp", weights: [0.5] };
  $("op").replaceChildren(...server.operators.map((op) => new Option(op.replace("_", " "), op)));
  $("layer").max = server.layers.length - 1;
  const depth = resolved(first.layer);
  const place = server.layers.indexOf(depth);
  $("layer").value = place < 0 ? server.layers.length - 1 : place;
  $("op").value = server.operators.includes(first.op) ? first.op : server.operators[0];
  $("ratio").value = Math.min(1, Math.max(0, server.ratio));
  $("scope").value = server.latent.scope ?? "all";
  const simple = sites.length === 1 && Object.keys(first).every((key) => ["layer", "op", "weights"].includes(key));
  $("sites-row").hidden = simple || !sites.length;
  $("sites").value = simple || !sites.length ? "one" : "served";
  $("max-tokens").placeholder = `up to ${Math.min(server.max_tokens, server.context ?? Infinity)}`;
  if (server.context) $("max-tokens").max = server.context - 1;
  $("temperature").value = 0;
  $("seed").value = 0;
  $("live").checked = true;
  $("format").querySelector("[value=chat]").disabled = !server.chat;
  $("format").value = server.chat ? "chat" : "plain";
}

function resolved(layer) {
  if (layer === "last") return server.depth;
  const share = /^([\d.]+)n$/.exec(String(layer));
  return share ? Math.round(Number(share[1]) * server.depth) : Number(layer);
}

// ---------------------------------------------------------------- answers

const shortName = (path) => path.split("/").filter(Boolean).slice(-2).join("/");
const order = { base: 0, blend: 1, donor: 2 };

function modelsInOrder() {
  return [...server.models].sort((a, b) => order[a.kind] - order[b.kind]);
}

class Answer {
  constructor(model) {
    this.model = model;
    this.text = "";
    this.root = document.createElement("article");
    this.root.className = "answer";
    this.root.dataset.kind = model.kind;
    this.root.dataset.model = model.id;
    this.root.setAttribute("aria-label", `Answer of ${model.id}`);
    this.root.innerHTML =
      "<header><h3></h3><span></span></header><div class=text></div><p class=error hidden></p><footer></footer>";
    this.root.querySelector("h3").textContent = model.id;
  }

  part(selector) {
    return this.root.querySelector(selector);
  }

  begin(settings) {
    this.text = "";
    this.tokens = 0;
    this.started = performance.now();
    this.first = 0;
    this.part(".text").replaceChildren();
    this.part(".error").hidden = true;
    this.part("header span").textContent = settings;
    this.part("footer").textContent = "waiting";
    this.root.setAttribute("aria-busy", "true");
    this.root.style.setProperty("--used", `${Math.round(Number($("ratio").value) * 100)}%`);
  }

  take(chunk) {
    const choice = chunk.choices[0];
    const piece = choice?.delta?.content ?? choice?.text ?? "";
    this.text += piece;
    if (piece) this.part(".text").append(piece);
    if (choice?.finish_reason) this.finish = choice.finish_reason;
    if (chunk.usage?.completion_tokens) {
      this.first ||= performance.now();
      this.tokens = chunk.usage.completion_tokens;
    }
    if (chunk.smelt) this.final = chunk.smelt;
    this.count();
  }

  count() {
    const seconds = (performance.now() - this.first) / 1000;
    const rate = this.final?.tokens_per_second ?? (this.tokens > 1 && seconds > 0 ? (this.tokens - 1) / seconds : 0);
    const parts = [`${this.tokens} ${this.tokens === 1 ? "token" : "tokens"}`];
    if (rate) parts.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`);
    if (this.first) parts.push(`first after ${((this.first - this.started) / 1000).toFixed(2)} s`);
    if (this.note) parts.push(this.note);
    this.part("footer").replaceChildren(
      ...parts.map((text) => Object.assign(document.createElement("span"), { textContent: text })),
    );
  }

  end(note) {
    this.note = note;
    this.root.setAttribute("aria-busy", "false");
    if (!this.text && note !== "failed") {
      const empty = Object.assign(document.createElement("span"), { className: "empty", textContent: "no text" });
      this.part(".text").replaceChildren(empty);
    }
    this.count();
  }

  fail(message) {
    this.part(".error").textContent = message;
    this.part(".error").hidden = false;
    this.end("failed");
  }
}

function addTurn(prompt) {
  const turn = { prompt, system: value("system").trim(), format: value("format"), answers: {} };
  const root = document.createElement("section");
  root.className = "turn";
  const asked = Object.assign(document.createElement("p"), { className: "asked", textContent: prompt });
  const grid = Object.assign(document.createElement("div"), { className: "answers" });
  for (const model of modelsInOrder()) {
    const answer = new Answer(model);
    turn.answers[model.id] = answer;
    grid.append(answer.root);
  }
  root.append(asked, grid);
  $("welcome").hidden = true;
  $("turns").append(root);
  turns.push(turn);
  root.scrollIntoView({ block: "end" });
  return turn;
}

function messagesFor(turn, model) {
  const messages = turn.system ? [{ role: "system", content: turn.system }] : [];
  for (const earlier of turns) {
    if (earlier.format !== "chat" && earlier !== turn) continue;
    messages.push({ role: "user", content: earlier.prompt });
    if (earlier === turn) break;
    messages.push({ role: "assistant", content: earlier.answers[model].text });
  }
  return messages;
}

function numberOf(id, otherwise) {
  const field = $(id);
  return field.value.trim() === "" || !field.checkValidity() ? otherwise : Number(field.value);
}

function bodyFor(turn, model) {
  const body = { model: model.id, temperature: numberOf("temperature", 0), seed: numberOf("seed", 0) };
  body.max_tokens = numberOf("max-tokens", turn.format === "chat" ? undefined : 128);
  if (model.kind === "blend") body.latent = latentNow();
  if (turn.format === "chat") return ["/v1/chat/completions", { ...body, messages: messagesFor(turn, model.id) }];
  return ["/v1/completions", { ...body, prompt: turn.prompt }];
}

async function ask(turn, model) {
  const answer = turn.answers[model.id];
  answer.control?.abort();
  const control = (answer.control = new AbortController());
  answer.final = answer.finish = answer.note = undefined;
  answer.begin(model.kind === "blend" ? settingsText() : subtitle(model));
  running.add(control);
  showRunning();
  try {
    for await (const chunk of stream(...bodyFor(turn, model), control.signal)) {
      if (answer.control === control) answer.take(chunk);
    }
    if (answer.control === control) answer.end(answer.finish === "length" ? "cut at the limit" : "");
  } catch (error) {
    if (answer.control !== control) return; // a newer request took the card over
    if (error.name === "AbortError") answer.end("stopped");
    else answer.fail(error.message);
    if (error.status === 401) askForKey();
  } finally {
    running.delete(control);
    showRunning();
  }
}

function subtitle(model) {
  if (model.kind === "base") return shortName(server.base);
  return shortName(server.donors[Number(model.id.split("-")[1] ?? 1) - 1]);
}

function stopAll() {
  for (const control of running) control.abort();
}

function showRunning() {
  const busy = running.size > 0;
  $("stop").hidden = !busy;
  $("send").disabled = busy;
  $("status").textContent = busy ? "Answers are being written" : turns.length ? "All answers are there" : "";
}

function send() {
  const prompt = $("prompt").value;
  if (!prompt.trim() || running.size || !server) return;
  sent.push(prompt);
  recall = sent.length;
  $("prompt").value = "";
  const turn = addTurn(prompt);
  for (const model of modelsInOrder()) ask(turn, model);
}

/** The blend of the last turn once more, with the settings as they are now. */
function answerAgain() {
  const turn = turns.at(-1);
  const blend = server.models.find((model) => model.kind === "blend");
  if (turn && blend && value("live")) ask(turn, blend);
}

// ---------------------------------------------------------------- events

function listen() {
  $("composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
  $("prompt").addEventListener("keydown", onKey);
  $("stop").addEventListener("click", stopAll);
  $("reset").addEventListener("click", reset);
  $("settings").addEventListener("submit", (event) => event.preventDefault());
  $("settings").addEventListener("input", () => (showSettings(), remember()));
  $("settings").addEventListener("change", (event) => {
    if (!OF_BLEND.includes(event.target.id)) return;
    clearTimeout(debounce);
    debounce = setTimeout(answerAgain, 200);
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && running.size && stopAll());
}

function onKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && recall > 0 && (!$("prompt").value || $("prompt").value === sent[recall])) {
    event.preventDefault();
    $("prompt").value = sent[--recall];
  }
}

function reset() {
  stopAll();
  turns = [];
  $("turns").replaceChildren($("welcome"));
  $("welcome").hidden = false;
  $("prompt").focus();
}

function complain(message) {
  $("banner").textContent = message;
  $("banner").hidden = !message;
}

function askForKey() {
  const dialog = $("key-dialog");
  dialog.addEventListener("close", () => (saveKey($("key").value), start()), { once: true });
  if (!dialog.open) dialog.showModal();
}

async function start() {
  complain("");
  try {
    server = await describe();
  } catch (error) {
    if (error.status === 401) return askForKey();
    return complain(error.message);
  }
  fillSettings();
  restore();
  $("layer").value = Math.min(Number($("layer").value), server.layers.length - 1);
  if (!server.chat) $("format").value = "plain";
  showSettings();
  $("models").textContent = [server.base, ...server.donors].map(shortName).join("  +  ");
  const missing = Object.entries(server.missing).map(([name, reason]) => `${name} does not answer: ${reason}`);
  $("missing").textContent = missing.join("\n");
  $("missing").hidden = !missing.length;
  document.documentElement.dataset.ready = "yes";
  $("prompt").focus();
}

listen();
start();
