{
  const table = document.getElementById("table-slides");
  const frame = table.parentElement;
  const rows = [...table.tBodies[0].rows];
  const search = document.getElementById("slide-search");
  const state = document.getElementById("slide-state");
  const count = document.getElementById("slide-count");

  // ten thousand pictures take a browser half a minute, lazily loaded or not, so there are only those that were in view
  function loadInView() {
    const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    const top = Math.max(frame.getBoundingClientRect().top, 0);
    const bottom = Math.min(frame.getBoundingClientRect().bottom, innerHeight);
    let first = 0, last = shown.length;
    while (first < last) {
      const middle = (first + last) >> 1;
      if (shown[middle].getBoundingClientRect().bottom < top) first = middle + 1;
      else last = middle;
    }
    for (let index = first; index < shown.length && shown[index].getBoundingClientRect().top < bottom; index++)
      for (const link of shown[index].getElementsByClassName("picture")) {
        if (!link.firstElementChild)
          link.replaceChildren(Object.assign(new Image(), { alt: link.textContent, src: link.href }));
      }
  }
  let waiting = false;
  function loadSoon() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; loadInView(); });
  }
  function filter() {
    const wanted = search.value.trim().toLowerCase();
    let num = 0;
    for (const row of rows) {
      const fits = row.cells[0].dataset.value.includes(wanted) && (!state.value || row.cells[3].dataset.value === state.value);
      row.hidden = !fits;
      num += fits;
    }
    count.textContent = `${num.toLocaleString("en")} of ${rows.length.toLocaleString("en")} slides`;
    loadInView();
  }
  search.addEventListener("input", filter);
  state.addEventListener("change", filter);
  // after the page's own listeners, which sort
  table.tHead.addEventListener("click", loadInView);
  frame.addEventListener("scroll", loadSoon, { passive: true });
  addEventListener("scroll", loadSoon, { passive: true });
  addEventListener("resize", loadSoon);
  filter();
}
