// Building and renewing the document. Text is always text: nothing a service says is ever read as HTML.

/** An element: `h("td", {class: "n", onclick: f}, "text", child, …)`; what is null or false is left out. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "width%") element.style.width = `${Math.max(0, Math.min(100, value))}%`;
    else if (name === "color") element.style.background = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

const shown = new WeakMap();

/** Put `children` in the place of what was in an element, unless that says the same already. */
export function fill(element, ...children) {
  const fresh = h("div", {}, ...children);
  const text = fresh.innerHTML;
  if (shown.get(element) === text) return;
  shown.set(element, text);
  element.replaceChildren(...fresh.childNodes);
}

/** As `fill`, but a control that has the focus keeps it: the element with the same data-key gets it back. */
export function renew(element, ...children) {
  const inside = element.contains(document.activeElement);
  const key = inside ? document.activeElement.dataset.key : undefined;
  fill(element, ...children);
  if (key !== undefined) element.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/** A table's head and rows; a cell is a node, a text, or `[props, ...children]`. The first cell of a row names it. */
export function table(caption, head, rows, nothing = "Nothing yet.") {
  const cell = (tag, content, props = {}) =>
    Array.isArray(content) ? h(tag, { ...props, ...content[0] }, ...content.slice(1)) : h(tag, props, content);
  const body = rows.length
    ? rows.map((row) =>
        h("tr", row.props ?? {}, ...row.cells.map((c, i) => (i ? cell("td", c) : cell("th", c, { scope: "row" })))),
      )
    : [h("tr", {}, h("td", { class: "none", colspan: head.length }, nothing))];
  return [
    h("caption", { class: "sr" }, caption),
    h("thead", {}, h("tr", {}, ...head.map((c) => cell("th", c, { scope: "col" })))),
    h("tbody", {}, ...body),
  ];
}

/** Tell a screen reader what has just been done. */
export function say(text) {
  byId("said").textContent = text;
}
