// Sort the table of results by the header that is clicked, and filter its rows by words.
const table = document.querySelector("#results table");
const body = table.tBodies[0];
const headers = [...table.tHead.rows[0].cells];
headers.forEach((header, column) => {
  const text = (row) => row.cells[column].textContent;
  const value = (row) => Number(text(row).split(" ")[0]);
  const known = [...body.rows].filter((row) => text(row) !== "-");
  const numeric = known.every((row) => !Number.isNaN(value(row)));
  const button = document.createElement("button");
  button.append(...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => {
    const up = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    headers.forEach((each) => each.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
    known.sort((a, b) => up * (numeric ? value(a) - value(b)
      : text(a).localeCompare(text(b), "en", { numeric: true })));
    body.append(...known, ...[...body.rows].filter((row) => !known.includes(row)));
  });
});
const filter = document.createElement("input");
Object.assign(filter, { type: "search", placeholder: "Filter, such as: tuned usps", ariaLabel: "Filter rows" });
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(" ");
  for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
});
table.parentNode.before(filter);
