{
  const rows = [...document.querySelector("#table-slides tbody").rows];
  const search = document.getElementById("slide-search");
  const state = document.getElementById("slide-state");
  const count = document.getElementById("slide-count");
  function filter() {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = row.cells[0].dataset.value.includes(wanted) && (!state.value || row.cells[3].dataset.value === state.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} slides`;
  }
  search.addEventListener("input", filter);
  state.addEventListener("change", filter);
  filter();
}
