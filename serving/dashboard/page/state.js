// What the page knows: the latest figures of one pool, its counts over time, and its time line.

const KEPT_EVENTS = 200;
const STEP_S = { fine: 5, coarse: 60 };
const SHOWN = { fine: 120, coarse: 360 };
const LEAST = { fine: 24, coarse: 15 };

export class State {
  figures = null;
  events = [];
  #buckets = { fine: new Map(), coarse: new Map() };

  /** All at once, when the connection begins. */
  snapshot(data) {
    this.#buckets = { fine: new Map(), coarse: new Map() };
    this.events = [];
    this.tick(data);
  }

  /** What may have changed within a second. */
  tick(data) {
    for (const range of ["fine", "coarse"]) {
      const buckets = this.#buckets[range];
      for (const bucket of data[range]) buckets.set(bucket.t, bucket);
      const oldest = data.now - (SHOWN[range] + 1) * STEP_S[range];
      for (const t of buckets.keys()) if (t < oldest) buckets.delete(t);
    }
    this.events = [...data.events, ...this.events].slice(0, KEPT_EVENTS);
    const { pools } = this.figures ?? {};
    this.figures = { pools, ...data };
  }

  get busy() {
    return this.figures.everything.attempts > 0;
  }

  /** The counts over time without a gap: [{t, bucket or null}], oldest first, at least a few minutes of them. */
  series(range) {
    const step = STEP_S[range];
    const buckets = this.#buckets[range];
    const last = this.figures.now - (this.figures.now % step) - (range === "fine" ? step : 0); // one that is full
    const first = Math.min(last - (LEAST[range] - 1) * step, ...buckets.keys());
    const found = [];
    for (let t = Math.max(first, last - (SHOWN[range] - 1) * step); t <= last; t += step) {
      found.push({ t, bucket: buckets.get(t) ?? null });
    }
    return found;
  }

  /** Of a sum, how much it was in a minute: of a bucket that is being filled, in the part of it that is over. */
  perMinute(range, t, sum) {
    return (60 * sum) / Math.max(1, Math.min(STEP_S[range], this.figures.now - t));
  }

  /** The pool's models in its own order, and with them any that still appears in the counts. */
  get models() {
    return this.figures.pool.models.map((model) => model.name);
  }
}

/** The colour of the model at a place in its pool. */
export const colorOf = (place) =>
  getComputedStyle(document.documentElement)
    .getPropertyValue(`--c${place % 8}`)
    .trim();
