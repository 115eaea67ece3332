// The floor: user or assistant, by the engine's events, shown next to the levels and in the status line.

export class Floor {
  constructor(body, status) {
    this.body = body;
    this.status = status;
    this.clear();
  }

  clear() {
    this.speaking = new Set();
    this.show();
  }

  take({ type }) {
    const changes = {
      speech_started: () => this.speaking.add("user"),
      speech_stopped: () => this.speaking.delete("user"),
      answer_started: () => this.speaking.add("assistant"),
      answer_done: () => this.speaking.delete("assistant"),
      interrupted: () => this.speaking.delete("assistant"),
    };
    if (!(type in changes)) return;
    changes[type]();
    this.show();
  }

  show() {
    this.body.dataset.speaking = [...this.speaking].join(" ");
    const words = { user: "You speak.", assistant: "It speaks. Interrupt it.", "": "It listens." };
    this.status(this.speaking.size === 2 ? "Both speak." : words[[...this.speaking][0] ?? ""]);
  }
}
