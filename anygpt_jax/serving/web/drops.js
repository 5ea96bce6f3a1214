// Files that are dragged over the page and dropped.

/** Shows `overlay` while files are over the page, and gives what is dropped to `take`. */
export function drops(overlay, take) {
  let over = 0; // elements that the files have entered and not left
  addEventListener("dragenter", (event) => {
    if (event.dataTransfer?.types.includes("Files")) overlay.hidden = !++over;
  });
  addEventListener("dragleave", () => {
    over = Math.max(0, over - 1);
    overlay.hidden = !over;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over = 0;
    overlay.hidden = true;
    if (event.dataTransfer?.files.length) take([...event.dataTransfer.files]);
  });
}
