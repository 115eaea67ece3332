// Levels of the last 30 seconds on one axis: the user above, the assistant below, the newest at the right.

const FLOOR_DB = -60;
const COLUMN_MS = 100;
const COLUMNS = 300;
const WHO = ["user", "assistant"];

export class Timeline {
  // body: the element whose data-speaking names the speaker.
  constructor(canvas, body) {
    this.canvas = canvas;
    this.body = body;
    this.context = canvas.getContext("2d");
    this.clear();
    addEventListener("resize", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  clear() {
    this.first = null; // the time of the oldest column, in columns
    this.columns = [];
    this.draw();
  }

  // level: root mean square of the latest samples, which are in [-1, 1].
  push(who, level) {
    const now = Math.floor(performance.now() / COLUMN_MS);
    this.first ??= now;
    while (this.first + this.columns.length <= now) {
      this.columns.push({ user: 0, assistant: 0, speaking: this.body.dataset.speaking ?? "" });
      if (this.columns.length > COLUMNS) {
        this.columns.shift();
        this.first++;
      }
    }
    const decibels = 20 * Math.log10(Math.max(level, 1e-6));
    this.columns.at(-1)[who] = Math.max(0, 1 - decibels / FLOOR_DB);
    this.draw();
  }

  draw() {
    const { width, height } = this.canvas;
    const style = getComputedStyle(this.canvas);
    const [step, middle] = [width / COLUMNS, height / 2];
    this.context.clearRect(0, 0, width, height);
    WHO.forEach((who, lane) => {
      const top = lane * middle;
      this.context.fillStyle = style.getPropertyValue(lane ? "--voice" : "--you");
      this.columns.forEach((column, i) => {
        const x = width - (this.columns.length - i) * step;
        if (column.speaking.includes(who)) {
          this.context.globalAlpha = 0.15;
          this.context.fillRect(x, top, step + 0.5, middle);
        }
        this.context.globalAlpha = 1;
        const bar = column[who] * (middle - 8);
        this.context.fillRect(x, lane ? middle + 2 : middle - 2 - bar, step - 1, bar);
      });
    });
    this.context.fillStyle = style.getPropertyValue("--faint");
    this.context.fillRect(0, middle - 1, width, 2);
  }
}
