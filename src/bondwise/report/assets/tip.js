"use strict";
const root = document.documentElement;
root.classList.add("js");

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark";
});

// Exact numbers under the pointer, and beside a card that has the focus.
const tip = document.getElementById("tip");
const showTip = (text, x, y) => {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(12, Math.min(x + 14, innerWidth - width - 12))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? Math.max(8, y - height - 12) : y + 18}px`;
};
const hideTip = () => { tip.hidden = true; };
document.addEventListener("pointermove", (event) => {
  const about = event.target.closest("[data-tip]");
  if (about) showTip(about.dataset.tip, event.clientX, event.clientY);
  else hideTip();
});
document.addEventListener("focusin", (event) => {
  const about = event.target.closest("[data-tip]");
  if (!about || !about.matches(":focus-visible")) return hideTip();
  const box = about.getBoundingClientRect();
  showTip(about.dataset.tip, box.left - 14, box.bottom - 10);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
addEventListener("scroll", hideTip, { passive: true });
addEventListener("hashchange", hideTip);
