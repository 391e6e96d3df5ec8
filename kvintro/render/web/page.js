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

  const top = document.querySelector(".top");
  const form = document.getElementById("lookup");
  const box = form.elements.address;
  const answer = document.getElementById("answer");
  const said = document.getElementById("said");
  const menu = document.getElementById("menu");
  const sections = document.getElementById("sections");
  const panel = document.getElementById("panel");
  const href = (id) => "#" + encodeURIComponent(id);

  // The header is as high as the answer in it. Headings that a link leads to stay below it.
  new ResizeObserver(() => {
    document.documentElement.style.setProperty("--top", `${top.offsetHeight}px`);
  }).observe(top);

  // Commands, to be pasted into a shell.
  for (const button of all(document, ".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      let words = "Copied";
      try {
        await navigator.clipboard.writeText(button.dataset.command);
      } catch (error) {
        words = button.dataset.command; // It can be copied by hand.
      }
      button.textContent = words;
      said.textContent = words;
      setTimeout(() => (button.textContent = "Copy as command"), words === "Copied" ? 2000 : 20000);
    });
  }

  // Wide tables say that they can be moved sideways.
  const wider = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      target.previousElementSibling.classList.toggle("wider", target.scrollWidth > target.clientWidth + 1);
    }
  });
  for (const part of all(document, ".scroll")) wider.observe(part);

  // The sections: the one that is read is marked; a narrow screen has a menu of them.
  if (sections) {
    const showMenu = (shown) => {
      menu.setAttribute("aria-expanded", shown);
      sections.classList.toggle("shown", shown);
    };
    menu.hidden = false;
    menu.addEventListener("click", () => showMenu(menu.getAttribute("aria-expanded") === "false"));
    sections.addEventListener("click", () => showMenu(false));
    addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || menu.getAttribute("aria-expanded") === "false") return;
      showMenu(false);
      menu.focus();
    });
    const links = all(sections, "a");
    const seen = new Set();
    const watch = new IntersectionObserver(
      (changes) => {
        for (const change of changes) seen[change.isIntersecting ? "add" : "delete"](change.target.id);
        const current = links.find((link) => seen.has(link.hash.slice(1)));
        if (!current) return;
        for (const link of links) link.removeAttribute("aria-current");
        current.setAttribute("aria-current", "location");
      },
      { rootMargin: "-160px 0px -55% 0px" }
    );
    for (const link of links) watch.observe(document.getElementById(link.hash.slice(1)));
  }

  // The panel: a region's card moves there from its section, beside the map or, on a narrow screen, over it.
  const wide = matchMedia("(min-width: 1100px)");
  let card = null;
  let place = null; // where the card belongs
  let before = null; // what had the focus
  const bands = (id) => all(document, `.kv-map a[href="#${id}"]`);
  const putBack = () => {
    if (!card) return;
    for (const band of bands(card.id)) band.removeAttribute("aria-current");
    place.replaceWith(card);
    card = null;
  };
  const leave = () => {
    if (!card) return false;
    putBack();
    panel.close();
    return true;
  };
  const show = (region) => {
    if (!panel.open) before = document.activeElement;
    if (region !== card) {
      putBack();
      card = region;
      place = document.createComment("");
      card.replaceWith(place);
      panel.append(card);
      panel.setAttribute("aria-labelledby", card.getAttribute("aria-labelledby"));
      for (const band of bands(card.id)) band.setAttribute("aria-current", "true");
      for (const part of all(card, ".inside")) part.open = true;
    }
    if (!panel.open) panel[wide.matches ? "show" : "showModal"]();
    panel.scrollTop = 0;
    panel.querySelector(".close").focus({ preventScroll: true });
  };
  const shut = () => {
    if (!leave()) return;
    history.replaceState(null, "", location.href.split("#")[0]);
    if (before && before.isConnected) before.focus({ preventScroll: true });
  };
  panel.querySelector(".close").addEventListener("click", shut);
  panel.addEventListener("cancel", (event) => {
    event.preventDefault();
    shut();
  });
  wide.addEventListener("change", () => {
    if (!panel.open) return;
    panel.close();
    panel[wide.matches ? "show" : "showModal"]();
  });

  // The search box: everything it knows is in the page.
  const data = JSON.parse(document.getElementById("addresses").textContent);
  const big = (word) => BigInt("0x" + word);
  const parse = (items) => items.map(([start, end, name, link]) => ({ start: big(start), end: big(end), name, link }));
  const regions = parse(data.regions);
  const parts = parse(data.parts);
  const linear = data.linear.map((rule) => rule.map(big));
  const hex = (number) => number.toString(16).padStart(16, "0");
  const last = (1n << 64n) - 1n;
  const holds = (address) => (range) => range.start <= address && address <= range.end;
  const inRegion = (address) => (regions.find(holds(address)) || { name: "no known region" }).name;
  const names = [
    ...regions.filter((r) => r.link !== "region-hole").map((r) => ({ name: r.name, what: "region", link: r.link, start: r.start, end: r.end })),
    ...data.names.map(([name, what, at, link]) => ({ name, what, link: at ? `addr=${at}` : link, start: at && big(at) })),
    ...parts.map((p) => ({ name: p.name, what: inRegion(p.start), link: `addr=${hex(p.start)}`, start: p.start, end: p.end })),
  ];
  for (const item of names) item.low = item.name.toLowerCase();

  const line = (list, term, item, ...more) => {
    const place = document.createElement("dd");
    if (item.link) {
      const link = text("a", item.name);
      link.href = "#" + item.link;
      place.append(link);
    } else place.append(item.name);
    if (item.start !== undefined && item.start !== "") {
      place.append(" ", text("span", hex(item.start) + (item.end > item.start ? `\u2013${hex(item.end)}` : ""), "mono soft"));
    }
    for (const words of more) place.append(" ", text("span", words, "soft"));
    list.append(text("dt", term), place);
  };
  const aboutAddress = (address, list) => {
    const at = regions.findIndex(holds(address));
    const region = regions[at];
    const from = (range) => `at +0x${(address - range.start).toString(16)}`;
    line(list, "in", region, from(region));
    const inside = parts.filter(holds(address));
    inside.sort((a, b) => (a.end - a.start < b.end - b.start ? -1 : 1));
    for (const part of inside.slice(0, 12)) line(list, "in", part, from(part));
    for (const [start, end, offset] of linear) {
      if (start <= address && address <= end) {
        const physical = ((address - offset) & last).toString(16);
        list.append(text("dt", "physical"), text("dd", `${physical} by the rule of this region; only the page tables show whether it is mapped`));
      }
      // The same number as a physical address, if something is known to be there.
      const other = (address + offset) & last;
      const there = start <= other && other <= end && parts.find(holds(other));
      if (there) {
        line(list, "as physical", { name: hex(other), link: `addr=${hex(other)}` }, `in ${inRegion(other)}, ${there.name}`);
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
  // How well a name fits: it is the words, begins with them, has a word that begins with them, contains them.
  const rank = (low, words) => {
    if (low === words) return 0;
    if (low.startsWith(words)) return 1;
    const at = low.indexOf(words);
    if (at < 0) return words.split(/\s+/).every((word) => low.includes(word)) ? 4 : 5;
    return /[a-z0-9]/.test(low[at - 1]) ? 3 : 2;
  };
  const look = (asked) => {
    answer.replaceChildren();
    const words = asked.trim().toLowerCase();
    answer.hidden = !words;
    said.textContent = "";
    if (!words) return;
    const button = text("button", "Close", "close");
    button.type = "button";
    button.addEventListener("click", close);
    answer.append(button);
    const plain = words.replace(/^0x/, "").replace(/[_`]/g, "");
    const isAddress = /^[0-9a-f]{1,16}$/.test(plain);
    if (isAddress) {
      const list = document.createElement("dl");
      answer.append(text("p", hex(big(plain)), "mono"), list);
      aboutAddress(big(plain), list);
    }
    const found = [[], [], [], [], []];
    for (const item of names) (found[rank(item.low, words)] || []).push(item);
    const fits = found.flat();
    if (fits.length) {
      const list = document.createElement("dl");
      answer.append(list);
      for (const item of fits.slice(0, 12)) line(list, item.what, item);
      if (fits.length > 12) answer.append(text("p", `and ${fits.length - 12} more: write more of the name`, "soft"));
    } else if (!isAddress) {
      answer.append(text("p", "Nothing on this page has such a name. Not an address: up to 16 hexadecimal digits, with or without 0x.", "bad"));
    }
    if (data.cut) answer.append(text("p", `Only the first ${parts.length} parts of regions can be found here; kvintro identify asks the source itself.`, "soft"));
    said.textContent = isAddress ? `${hex(big(plain))}: in ${inRegion(big(plain))}` : `${fits.length} found`;
  };
  const close = () => {
    look("");
    if (/^#addr=/.test(location.hash)) history.replaceState(null, "", location.href.split("#")[0]);
    box.focus();
  };
  if (regions.length) {
    form.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      look(box.value);
      if (box.value.trim()) history.replaceState(null, "", href(`addr=${box.value.trim()}`).replace("%3D", "="));
    });
    box.addEventListener("input", () => look(box.value));
  }
  addEventListener("keydown", (event) => {
    const field = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key === "/" && !field && !event.ctrlKey && !event.metaKey && !event.altKey && !form.hidden) {
      event.preventDefault();
      box.focus();
      box.select();
    } else if (event.key === "Escape" && !answer.hidden) {
      close();
    } else if (event.key === "Escape" && card) {
      shut();
    }
  });

  // The end of the link is the state: #region-... opens the panel, #addr=... asks the box, and anything else is
  // a place in the page, of which closed parts are opened.
  const route = (moved) => {
    let name = location.hash.slice(1);
    try {
      name = decodeURIComponent(name);
    } catch (error) {
      // It is not encoded, and names nothing or itself.
    }
    const target = name && document.getElementById(name);
    if (target && target.classList.contains("region")) {
      show(target);
      if (!moved) document.getElementById("layout").scrollIntoView();
      return;
    }
    const closed = leave();
    if (name.startsWith("addr=") && regions.length) {
      box.value = name.slice(5);
      look(box.value);
    }
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    if (target && closed) target.scrollIntoView();
  };
  addEventListener("hashchange", () => route(true));
  addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#region-"]');
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    // The browser would go to the card in its section first.
    event.preventDefault();
    if (location.hash !== link.getAttribute("href")) history.pushState(null, "", link.getAttribute("href"));
    route(true);
  });
  route(false);
  addEventListener("beforeprint", () => {
    leave();
    for (const part of all(document, "details")) part.open = true;
  });
  addEventListener("afterprint", () => route(true));
})();
