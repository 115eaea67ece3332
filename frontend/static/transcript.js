// The transcript: turns in order, typed text, time and duration of speech, and, marked, the words of an interrupted answer
// that were not heard.

const percent = (share) => `${Math.round(share * 100)} %`;
const clock = (milliseconds) => {
  const seconds = Math.floor(milliseconds / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
};

export class Transcript {
  constructor(list) {
    this.list = list;
    this.clear();
  }

  clear() {
    this.list.textContent = "";
    this.speech = null; // entry and start of the user's open turn
    this.answer = null; // entry of the answer in progress
  }

  take(event) {
    const handlers = {
      speech_started: () => this.speechStarted(event),
      speech_stopped: () => this.speechStopped(event),
      answer_started: () => this.answerText(clock(event.at_ms)),
      text: () => this.answerText().append(event.text),
      answer_done: () => this.answerDone(),
      interrupted: () => this.interrupted(event),
      emotion: () => this.note(`The voice sounds ${event.label} (${percent(event.probability)}).`),
      language: () => this.note(`The language is ${event.label} (${percent(event.probability)}).`),
      lag: () => this.lagged(event),
      draining: () => this.note(`The server ends in ${event.seconds} s.`),
      turns_dropped: () => this.note("The oldest turn has left the context."),
    };
    handlers[event.type]?.();
    this.list.scrollTop = this.list.scrollHeight;
  }

  typed(message) {
    this.entry("user", "typed").lastChild.textContent = message;
  }

  note(words) {
    this.entry("note").lastChild.textContent = words;
  }

  lagged({ lag_ms, is_catching_up }) {
    const lag = `${(lag_ms / 1000).toFixed(1)} s`;
    this.note(is_catching_up ? `The sound is ${lag} late: silence is left out.` : "The sound is in time again.");
  }

  speechStarted({ at_ms }) {
    this.speech = { entry: this.entry("user", clock(at_ms)), at_ms };
    this.speech.entry.dataset.spoken = "";
    this.speech.entry.lastChild.textContent = "speaking …";
  }

  speechStopped({ at_ms }) {
    if (!this.speech) return;
    this.speech.entry.lastChild.textContent = `spoke for ${((at_ms - this.speech.at_ms) / 1000).toFixed(1)} s`;
    this.speech = null;
  }

  answerText(when = "") {
    this.answer ??= this.entry("assistant", when);
    return this.answer.lastChild;
  }

  answerDone() {
    if (this.answer && !this.answer.lastChild.textContent) this.answer.remove();
    this.answer = null;
  }

  interrupted({ heard_text, heard_ms }) {
    if (this.answer) {
      const words = this.answer.lastChild;
      const unheard = document.createElement("del");
      unheard.title = `interrupted after ${(heard_ms / 1000).toFixed(1)} s: these words were not heard`;
      unheard.textContent = words.textContent.slice(heard_text.length);
      words.textContent = heard_text;
      words.append(unheard);
    }
    this.answerDone();
  }

  // Adds an entry to the list; the text goes into its last child.
  entry(who, when = "") {
    const entry = document.createElement("li");
    entry.dataset.who = who;
    const label = document.createElement("small");
    label.textContent = { user: "You", assistant: "Voice", note: "" }[who] + (when ? ` · ${when}` : "");
    entry.append(label, document.createElement("span"));
    this.list.append(entry);
    this.list.scrollTop = this.list.scrollHeight;
    return entry;
  }
}
