// Sorting, filtering, copying and the choice of colours. The page says all it has to say without.
"use strict";

const order = new Intl.Collator("en", { numeric: true });

function sortKey(row, index) {
  const value = row.cells[index].dataset.sort;
  if (value === undefined) return row.cells[index].textContent.trim() || null;
  return value !== "" && !Number.isNaN(Number(value)) ? Number(value) : value;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return order.compare(a, b);
}

// Up, down, and as they were measured. What has no figure stays last.
function sortBy(table, rows, index) {
  const header = table.tHead.rows[0].cells[index];
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  const direction = next[header.getAttribute("aria-sort")];
  for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", direction);
  const missing = (row) => row.cells[index].dataset.sort === undefined && header.dataset.sorted;
  const sorted = [...rows];
  if (direction !== "none") {
    const sign = direction === "ascending" ? 1 : -1;
    sorted.sort((a, b) =>
      missing(a) - missing(b) || sign * compare(sortKey(a, index), sortKey(b, index)));
  }
  table.tBodies[0].append(...sorted);
}

function setUp(box) {
  const table = box.querySelector("table");
  const rows = [...table.tBodies[0].rows];
  const words = box.querySelector("[data-words]");
  const choices = [...box.querySelectorAll("[data-choice]")];
  const count = box.querySelector("[data-count]");

  [...table.tHead.rows[0].cells].forEach((header, index) => {
    if (rows.some((row) => row.cells[index].querySelector("details"))) return;
    if (rows.some((row) => row.cells[index].dataset.sort !== undefined)) header.dataset.sorted = 1;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(table, rows, index));
    header.append(button);
    header.setAttribute("aria-sort", "none");
  });

  for (const select of choices) {
    const seen = new Set(rows.map((row) => row.cells[select.dataset.choice].textContent));
    for (const value of seen) select.add(new Option(value));
    select.parentElement.hidden = seen.size < 2;
  }

  function filter() {
    const wanted = words.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(wanted.every((word) => text.includes(word)) && choices.every((select) =>
        !select.value || row.cells[select.dataset.choice].textContent === select.value));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  }
  for (const input of [words, ...choices]) input.addEventListener("input", filter);
  box.querySelector(".controls").hidden = rows.length < 5;
}

function offerCopy(details) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    const code = details.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "selected";
    }
  });
  details.append(button);
}

function offerTheme(button) {
  const names = { "": "as the system", light: "light", dark: "dark" };
  const root = document.documentElement;
  function choose(theme) {
    root.dataset.theme = theme;
    button.textContent = `Colours: ${names[theme]}`;
    try { localStorage.setItem("regops-theme", theme); } catch { /* a page from disk may not */ }
  }
  let kept = "";
  try { kept = localStorage.getItem("regops-theme") || ""; } catch { /* likewise */ }
  choose(kept in names ? kept : "");
  button.addEventListener("click", () => {
    const all = Object.keys(names);
    choose(all[(all.indexOf(root.dataset.theme) + 1) % all.length]);
  });
  button.hidden = false;
}

document.querySelectorAll("[data-table]").forEach(setUp);
document.querySelectorAll(".command").forEach(offerCopy);
offerTheme(document.getElementById("theme"));
