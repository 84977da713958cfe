"use strict";
(() => {
  const root = document.documentElement;
  const remembered = () => { try { return localStorage.getItem("graftkit-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("graftkit-theme", theme); } catch { /* a file may have no storage */ } };
  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();

  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  function theme() {
    document.getElementById("theme").addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember(root.dataset.theme);
    });
  }

  const PAGE = 40;
  const UNITS = ["B", "kB", "MB", "GB", "TB"];
  function size(bytes) {
    let unit = 0;
    while (bytes >= 1000 && unit < UNITS.length - 1) { bytes /= 1000; unit += 1; }
    return `${bytes.toFixed(unit ? 1 : 0)} ${UNITS[unit]}`;
  }

  function ledger() {
    const source = document.getElementById("ledger-rows");
    if (!source) return;
    const { rows: packed, operations, shapes, dtypes, shards } = JSON.parse(source.textContent);
    const rows = packed.map(([name, kept, made, operation, shape, dtype, shard, digest]) => ({
      name, kept, made, operation: operations[operation], shape: shapes[shape], dtype: dtypes[dtype], shard: shards[shard], digest,
      words: `${name} ${operations[operation]} ${shapes[shape].replaceAll(" × ", "x")} ${dtypes[dtype]} ${shards[shard]} ${digest}`.toLowerCase(),
    }));
    const keys = [(r) => r.name, (r) => r.made, (r) => r.kept + r.made, (r) => r.dtype, (r) => r.kept + r.made, (r) => r.shard, (r) => r.digest];
    if (shards.length < 2) for (const head of document.querySelectorAll("th.shard")) head.hidden = true;
    const compare = new Intl.Collator("en", { numeric: true }).compare;
    const state = { text: "", show: "all", sort: null, down: false, page: 0 };
    const at = (id) => document.getElementById(id);

    function chosen() {
      const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
      const found = rows.filter((r) => (state.show === "all" || (state.show === "changed") === r.made > 0)
        && words.every((word) => r.words.includes(word)));
      if (state.sort === null) return found;
      const key = keys[state.sort];
      const order = (a, b) => typeof key(a) === "number" ? key(a) - key(b) : compare(key(a), key(b));
      return found.sort((a, b) => state.down ? order(b, a) : order(a, b));
    }

    function cell(text, kind) {
      const made = document.createElement("td");
      made.textContent = text;
      made.className = kind;
      return made;
    }

    function title(name) {
      const made = cell("", "m name");
      name.split(/(?<=[._/])/).forEach((part) => made.append(part, document.createElement("wbr")));
      return made;
    }

    function draw() {
      const found = chosen();
      const pages = Math.max(Math.ceil(found.length / PAGE), 1);
      state.page = Math.min(state.page, pages - 1);
      const first = state.page * PAGE;
      const body = at("ledger-body");
      body.replaceChildren(...found.slice(first, first + PAGE).map((r) => {
        const line = document.createElement("tr");
        const how = r.made ? (r.kept ? `${size(r.made)} new` : "all new") : "kept";
        const change = r.operation ? `${how}, ${r.operation}` : how;
        line.append(title(r.name), cell(change, r.made ? "made" : "kept"), cell(r.shape, "n m"), cell(r.dtype, "m"),
          cell(size(r.kept + r.made), "n"), ...(shards.length < 2 ? [] : [cell(r.shard, "m")]), cell(r.digest, "m digest"));
        return line;
      }));
      const last = Math.min(first + PAGE, found.length);
      at("ledger-count").textContent = found.length
        ? `${(first + 1).toLocaleString("en")}–${last.toLocaleString("en")} of ${found.length.toLocaleString("en")}` : "no tensor matches";
      at("ledger-back").disabled = state.page === 0;
      at("ledger-next").disabled = state.page >= pages - 1;
    }

    at("ledger-filter").addEventListener("input", (event) => { state.text = event.target.value; state.page = 0; draw(); });
    at("ledger-back").addEventListener("click", () => { state.page -= 1; draw(); });
    at("ledger-next").addEventListener("click", () => { state.page += 1; draw(); });
    for (const button of document.querySelectorAll("#ledger-show button")) {
      button.addEventListener("click", () => {
        state.show = button.dataset.show;
        state.page = 0;
        for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
        draw();
      });
    }
    for (const button of document.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => {
        const place = Number(button.dataset.sort);
        state.down = state.sort === place && !state.down;
        state.sort = place;
        for (const other of document.querySelectorAll("[data-sort]")) other.parentElement.setAttribute("aria-sort", "none");
        button.parentElement.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        draw();
      });
    }
    draw();
  }

  addEventListener("DOMContentLoaded", () => { theme(); ledger(); });
})();
