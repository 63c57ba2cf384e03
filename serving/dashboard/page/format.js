// Figures as text. A figure that is not known is a dash, never a zero.

const DASH = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const count = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : DASH);

export function percent(value, digits = 1) {
  if (!known(value)) return DASH;
  const text = (100 * value).toFixed(digits);
  return `${value && Number(text) === 0 ? `<${(10 ** -digits).toFixed(digits)}` : text}%`;
}

export function usd(value) {
  if (!known(value)) return DASH;
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  if (size === 0) return "$0.00";
  if (size >= 0.1)
    return `${sign}$${size.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  return `${sign}$${size >= 0.001 ? size.toFixed(4) : size.toPrecision(2)}`;
}

export function seconds(value) {
  if (!known(value)) return DASH;
  if (value < 1) return `${(1000 * value).toFixed(0)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export const grade = (value, digits = 3) => (known(value) ? value.toFixed(digits) : DASH);

/** An interval of [mean, low, high, count] or {mean, low, high}. */
export function interval(share, digits = 2) {
  if (!share) return DASH;
  const [low, high] = Array.isArray(share) ? [share[1], share[2]] : [share.low, share.high];
  return known(low) ? `${low.toFixed(digits)}–${high.toFixed(digits)}` : DASH;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const clock = (ts) => CLOCK.format(new Date(1000 * ts));
export const moment = (ts, now) => (now - ts < 64800 ? clock(ts) : DAY.format(new Date(1000 * ts)));
export const day = (ts) => DAY.format(new Date(1000 * ts));
