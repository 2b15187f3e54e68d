// A line that is asked for, in a dialog.

const byId = (id) => document.getElementById(id);

// Asks for a line, or, without a label, whether to go on; null if that was cancelled.
export function ask(title, label, value = "") {
  const [dialog, answer] = [byId("ask"), byId("answer")];
  byId("ask-title").textContent = title;
  byId("ask-label").hidden = !label;
  byId("ask-label").firstElementChild.textContent = label;
  answer.type = label === "Key" ? "password" : "text";
  answer.value = value;
  dialog.returnValue = "";
  dialog.showModal();
  (label ? answer : byId("yes")).focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes" ? answer.value : null), { once: true });
  });
}

byId("answer").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault(); // or the form would be sent by its first button, which cancels
  byId("ask").close("yes");
});
