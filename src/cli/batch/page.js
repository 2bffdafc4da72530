"use strict";
const table = document.getElementById("models"), body = table.tBodies[0], rows = [...body.rows];
const form = document.getElementById("filter");
const cells = rows.map(row => row.textContent.toLowerCase());
const sections = rows.map(row => document.getElementById(row.dataset.section));
function filter() {
  const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  rows.forEach((row, i) => {
    const fits = words.every(word => cells[i].includes(word)) &&
      (!form.code.value || row.dataset.code === form.code.value) &&
      (!form.operator.value || row.dataset.operator === form.operator.value);
    row.classList.toggle("hidden", !fits);
    sections[i].classList.toggle("hidden", !fits);
    shown += fits;
  });
  document.getElementById("shown").textContent = `${shown} of ${rows.length}`;
}
form.addEventListener("input", filter);
form.addEventListener("submit", event => event.preventDefault());
[...table.tHead.rows[0].cells].forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
  const down = head.getAttribute("aria-sort") === "ascending";
  [...table.tHead.rows[0].cells].forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const numbers = head.classList.contains("n");
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    // What has no number comes last, either way.
    if (x === "" || y === "") return (x === "") - (y === "");
    return (numbers ? x - y : x.localeCompare(y)) * (down ? -1 : 1);
  };
  body.append(...rows.slice().sort(compare));
}));
function open() {
  const section = location.hash && document.getElementById(location.hash.slice(1));
  if (section && section.tagName === "DETAILS") section.open = true;
}
addEventListener("hashchange", open);
open();
filter();
