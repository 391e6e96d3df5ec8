"use strict";
(() => {
  const all = (root, what) => Array.from(root.querySelectorAll(what));
  const text = (tag, words, name) => {
    const made = document.createElement(tag);
    made.textContent = words;
    if (name) made.className = name;
    return made;
  };

  // Tables: sorted by the button in a heading, filtered by the box above.
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : cell.dataset.v;
  };
  const sort = (heading) => {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const numeric = heading.dataset.kind === "number";
    // What is large is looked for first; names and addresses go up.
    const before = heading.getAttribute("aria-sort");
    const up = before === "none" ? !numeric : before === "descending";
    for (const other of all(table, "th[aria-sort]")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = all(table.tBodies[0], "tr").map((row, at) => ({ row, at, key: value(row, column) }));
    const compare = numeric
      ? (a, b) => (a.key === "" ? -Infinity : Number(a.key)) - (b.key === "" ? -Infinity : Number(b.key))
      : (a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0);
    rows.sort((a, b) => (up ? compare(a, b) : compare(b, a)) || a.at - b.at);
    table.tBodies[0].append(...rows.map((item) => item.row));
  };
  for (const button of all(document, "th button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
  const filter = (input) => {
    const table = document.getElementById(input.dataset.table);
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => content.includes(word));
      shown += !row.hidden;
    }
    const count = input.parentElement.querySelector("output");
    count.textContent = words.length ? `${shown} of ${table.tBodies[0].rows.length}` : "";
  };
  for (const input of all(document, "input[data-table]")) {
    input.hidden = false;
    input.addEventListener("input", () => filter(input));
  }

  // The address box: everything it knows is in the page.
  const data = JSON.parse(document.getElementById("addresses").textContent);
  const form = document.getElementById("lookup");
  if (form && data.regions.length) {
    const big = (word) => BigInt("0x" + word);
    const parse = (items) => items.map(([start, end, name, link]) => ({ start: big(start), end: big(end), name, link }));
    const regions = parse(data.regions);
    const parts = parse(data.parts);
    const linear = data.linear.map(([start, end, offset]) => ({ start: big(start), end: big(end), offset: big(offset) }));
    const hex = (number) => number.toString(16).padStart(16, "0");
    const answer = document.getElementById("answer");
    const last = (1n << 64n) - 1n;

    const line = (list, term, item, distance) => {
      list.append(text("dt", term));
      const place = document.createElement("dd");
      if (item.link) {
        const link = text("a", item.name);
        link.href = "#" + item.link;
        place.append(link);
      } else place.append(item.name);
      place.append(" ", text("span", `${hex(item.start)}\u2013${hex(item.end)}`, "mono soft"));
      if (distance) place.append(" ", text("span", distance, "soft"));
      list.append(place);
    };
    const close = () => {
      answer.replaceChildren();
      form.elements.address.focus();
    };
    const look = (words) => {
      answer.replaceChildren();
      if (!words.trim()) return;
      const button = text("button", "Close", "close");
      button.type = "button";
      button.addEventListener("click", close);
      answer.append(button);
      const plain = words.trim().replace(/^0x/i, "").replace(/[_`]/g, "");
      if (!/^[0-9a-f]{1,16}$/i.test(plain)) {
        answer.append(text("p", "Not an address: up to 16 hexadecimal digits, with or without 0x.", "bad"));
        return;
      }
      const address = big(plain);
      const list = document.createElement("dl");
      answer.append(text("p", hex(address), "mono"), list);
      const at = regions.findIndex((r) => r.start <= address && address <= r.end);
      if (at < 0) {
        list.append(text("dt", "region"), text("dd", "not known"));
        return;
      }
      const region = regions[at];
      line(list, "in", region, `at +0x${(address - region.start).toString(16)}`);
      const inside = parts.filter((p) => p.start <= address && address <= p.end);
      inside.sort((a, b) => (a.end - a.start < b.end - b.start ? -1 : 1));
      for (const part of inside.slice(0, 12)) line(list, "in", part, `at +0x${(address - part.start).toString(16)}`);
      for (const rule of linear) {
        if (rule.start <= address && address <= rule.end) {
          const physical = (address - rule.offset) & last;
          list.append(text("dt", "physical"), text("dd", `${physical.toString(16)} by the rule of this region; only the page tables show whether it is mapped`));
        }
      }
      if (!inside.length) {
        const below = parts.filter((p) => p.end < address && p.end >= region.start);
        const above = parts.filter((p) => p.start > address && p.start <= region.end);
        if (below.length) {
          const near = below.reduce((a, b) => (b.end > a.end ? b : a));
          line(list, "below it", near, `ends 0x${(address - near.end).toString(16)} before`);
        }
        if (above.length) {
          const near = above.reduce((a, b) => (b.start < a.start ? b : a));
          line(list, "above it", near, `starts 0x${(near.start - address).toString(16)} further up`);
        }
      }
      if (at > 0) line(list, "region below", regions[at - 1]);
      if (at + 1 < regions.length) line(list, "region above", regions[at + 1]);
    };
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      look(form.elements.address.value);
    });
    form.elements.address.addEventListener("search", () => look(form.elements.address.value));
    // A link that ends in #addr=ffffffff81000000 asks for that address.
    const linked = () => {
      const asked = /^#addr=(.+)$/.exec(location.hash);
      if (!asked) return;
      form.elements.address.value = asked[1];
      look(form.elements.address.value);
    };
    addEventListener("hashchange", linked);
    linked();
    addEventListener("keydown", (event) => {
      const field = event.target.closest("input, textarea, select, [contenteditable]");
      if (event.key === "/" && !field && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        form.elements.address.focus();
      } else if (event.key === "Escape" && answer.firstChild) {
        close();
      }
    });
  }

  // A link into a closed part opens it; so does printing.
  const open = () => {
    let name = location.hash.slice(1);
    try {
      name = decodeURIComponent(name);
    } catch (error) {
      // It is not encoded, and names nothing or itself.
    }
    const target = name && document.getElementById(name);
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  };
  addEventListener("hashchange", open);
  open();
  addEventListener("beforeprint", () => {
    for (const part of all(document, "details")) part.open = true;
  });
})();
