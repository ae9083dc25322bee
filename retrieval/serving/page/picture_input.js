// Pictures of the reader's: chosen, dropped anywhere on the page, or pasted.

import { byId } from "./dom.js";

const isPicture = (file) => file.type.startsWith("image/");

// onFile(file) for a picture; onWords(words) where something else came.
export function listenForPictures({ onFile, onWords }) {
  const input = byId("file");
  byId("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files[0]) onFile(input.files[0]);
    input.value = "";
  });

  const take = (files) => {
    const file = [...files].find(isPicture);
    if (file) onFile(file);
    else onWords("That is not a picture. To search by one of another site, save it first.");
  };

  addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) {
      event.preventDefault();
      take(event.clipboardData.files);
    }
  });

  const veil = byId("drop");
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) veil.hidden = true;
  });
  addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!carriesFiles(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}
