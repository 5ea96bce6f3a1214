// Light, dark, or as the system has it.

const KEY = "anygpt-theme";
const NAMES = { auto: "Auto", light: "Light", dark: "Dark" };
const system = matchMedia("(prefers-color-scheme: dark)");

/** Makes a button that goes round the three; `changed` is called when colours change. */
export function themes(button, changed) {
  let theme = localStorage.getItem(KEY) in NAMES ? localStorage.getItem(KEY) : "auto";
  const apply = () => {
    const dark = theme === "dark" || (theme === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.textContent = `◐ ${NAMES[theme]}`;
    button.setAttribute("aria-label", `Theme: ${NAMES[theme]}`);
    changed();
  };
  button.addEventListener("click", () => {
    const names = Object.keys(NAMES);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    localStorage.setItem(KEY, theme);
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}
