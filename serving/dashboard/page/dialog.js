// The one dialog: a form if there is something to fill in, and always a question before anything is changed.

import { byId, h, say } from "./dom.js";

/**
 * Ask whether to go on; `work` does it, and its error is shown. Resolves to whether it was done.
 * `changes`: lines that say what will be different.
 */
export function confirm({ title, text, changes = [], action, done, work }) {
  return open((close, problem) => {
    const go = h("button", { type: "submit", class: "main" }, action);
    const body = [
      h("h2", { id: "dialog-title" }, title),
      text && h("p", {}, text),
      changes.length ? h("ul", { class: "changes" }, ...changes.map((line) => h("li", {}, line))) : null,
      problem,
      h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => close(false) }, "Cancel"), go),
    ];
    return {
      body,
      async submit() {
        go.disabled = true;
        try {
          await work();
          say(done ?? "Done");
          close(true);
        } catch (error) {
          problem.textContent = error.problems?.length
            ? error.problems.map((p) => `${p.param}: ${p.message}`).join("; ")
            : error.message;
          go.disabled = false;
        }
      },
    };
  });
}

/** A form; `read` makes a value of it or throws an Error whose text is shown. Resolves to the value, or null. */
export function form({ title, text, fields, action, read }) {
  return open((close, problem) => ({
    body: [
      h("h2", { id: "dialog-title" }, title),
      text && h("p", {}, text),
      ...fields,
      problem,
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", onclick: () => close(null) }, "Cancel"),
        h("button", { type: "submit", class: "main" }, action),
      ),
    ],
    submit() {
      try {
        close(read());
      } catch (error) {
        problem.textContent = error.message;
      }
    },
  }));
}

function open(make) {
  const dialog = byId("dialog");
  return new Promise((resolve) => {
    let answer = null;
    const problem = h("p", { class: "problem", role: "alert" });
    const { body, submit } = make((value) => {
      answer = value;
      dialog.close();
    }, problem);
    const content = h("form", { novalidate: true }, ...body);
    content.addEventListener("submit", (event) => {
      event.preventDefault();
      submit();
    });
    dialog.replaceChildren(content);
    dialog.addEventListener("close", () => resolve(answer), { once: true });
    dialog.showModal();
  });
}
