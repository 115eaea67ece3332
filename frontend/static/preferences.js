// The settings of the page, stored by the browser. Devices may change at any time, other settings before a conversation.

import { canChooseLoudspeaker, devicesOf } from "./devices.js";

const DEVICES = { microphone: "audioinput", loudspeaker: "audiooutput" };
const OTHERS = ["mode", "transport", "voice", "instructions"];
const STORE = "sca.settings";

export class Preferences {
  constructor(element) {
    this.element = element;
    this.kept = withStore((store) => JSON.parse(store.getItem(STORE))) ?? {};
    this.onDevice = () => {};
    element("loudspeaker").parentElement.hidden = !canChooseLoudspeaker;
    for (const name of [...Object.keys(DEVICES), ...OTHERS]) {
      element(name).onchange = () => {
        this.keep(name, element(name).value);
        if (name in DEVICES) this.onDevice();
      };
    }
    element("mode").value = this.kept.mode ?? "hands-free";
    element("transport").value = this.kept.transport ?? "call";
    element("instructions").value = this.kept.instructions ?? "";
    navigator.mediaDevices?.addEventListener("devicechange", () => this.listDevices());
    this.listDevices();
    this.listVoices();
  }

  get microphone() {
    return this.element("microphone").value;
  }

  get loudspeaker() {
    return this.element("loudspeaker").value;
  }

  get pushes() {
    return this.element("mode").value === "push";
  }

  get prefersCalls() {
    return this.element("transport").value === "call";
  }

  get voice() {
    return this.element("voice").value;
  }

  get instructions() {
    return this.element("instructions").value.trim();
  }

  lock(isLocked) {
    for (const name of OTHERS) this.element(name).disabled = isLocked;
  }

  async listDevices() {
    for (const [name, kind] of Object.entries(DEVICES)) this.fill(name, await devicesOf(kind));
  }

  async listVoices() {
    const response = await fetch("voices");
    const voices = response.ok ? await response.json() : [];
    this.fill("voice", voices.map((voice) => ({ id: voice, label: voice[0].toUpperCase() + voice.slice(1) })));
  }

  fill(name, choices) {
    const select = this.element(name);
    const wanted = select.value || this.kept[name] || "";
    select.replaceChildren(new Option("Default", ""), ...choices.map(({ id, label }) => new Option(label, id)));
    select.value = choices.some(({ id }) => id === wanted) ? wanted : "";
  }

  keep(name, value) {
    this.kept[name] = value;
    withStore((store) => store.setItem(STORE, JSON.stringify(this.kept)));
  }
}

// A browser may store nothing for a page, or a value of another page: then a choice lasts until the page is left.
function withStore(use) {
  try {
    return use(localStorage);
  } catch (error) {
    console.info(`settings are not kept: ${error.message}`);
    return null;
  }
}
