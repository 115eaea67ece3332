// Draws a level over time on a canvas, newest at the right, on a scale in decibels.

const FLOOR_DB = -60;
const BAR = 5; // pixels of a bar with its gap

export class Level {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.heights = new Array(Math.floor(canvas.width / BAR)).fill(0);
    this.draw();
  }

  // level: root mean square of some samples within [-1, 1].
  push(level) {
    const decibels = 20 * Math.log10(Math.max(level, 1e-6));
    this.heights.shift();
    this.heights.push(Math.max(0, 1 - decibels / FLOOR_DB));
    this.draw();
  }

  draw() {
    const { width, height } = this.canvas;
    this.context.clearRect(0, 0, width, height);
    this.context.fillStyle = getComputedStyle(this.canvas).color;
    this.heights.forEach((share, i) => {
      const bar = Math.max(2, share * height);
      this.context.fillRect(i * BAR, (height - bar) / 2, BAR - 2, bar);
    });
  }
}

export function rootMeanSquare(pcm) {
  return Math.sqrt(pcm.reduce((sum, sample) => sum + (sample / 32768) ** 2, 0) / pcm.length);
}
