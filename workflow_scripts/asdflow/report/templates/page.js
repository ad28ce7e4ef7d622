// The page's behaviour: views by address, figures drawn when they are seen, themes, tables, saving, listening.
"use strict";
(() => {
  const SLOW = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const DARK = {
    "#0072b2": "#5ab4e5", "#d55e00": "#ff8a3d", "#009e73": "#3fcf9f", "#cc79a7": "#e39cc4", "#e69f00": "#f2b93b",
    "#56b4e9": "#9cd7f7", "#6a51a3": "#b3a1e6", "#8c6d31": "#cdb07a", "#7f7f7f": "#a8a8a8", "#b2182b": "#f0697a",
    "#1c1f23": "#e8eaed", "#6b7280": "#a0a8b4", "#c9ced6": "#4a515b",
  };
  const main = document.getElementById("main");
  const root = document.documentElement;
  const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  // ---------------------------------------------------------------- themes
  const THEMES = ["auto", "light", "dark"];
  const THEME_NAMES = { auto: "automatic", light: "light", dark: "dark" };
  const remembered = () => { try { return localStorage.getItem("asdflow-theme"); } catch { return null; } };
  const isDark = () => !printing && (root.dataset.theme === "dark" || (root.dataset.theme === "auto" && darkSystem.matches));
  function setTheme(theme) {
    root.dataset.theme = theme;
    document.getElementById("theme").textContent = "Theme: " + THEME_NAMES[theme];
    try { localStorage.setItem("asdflow-theme", theme); } catch { /* private windows keep nothing */ }
    redraw();
  }

  // ---------------------------------------------------------------- plotly.js, started at the first figure
  let plotly = null;
  function library() {
    if (!plotly) {
      const script = document.createElement("script");
      script.textContent = document.getElementById("plotly-source").textContent;
      document.head.append(script);
      plotly = window.Plotly;
    }
    return plotly;
  }

  // ---------------------------------------------------------------- figures
  const entries = new Map();
  function entryOf(id) {
    if (!entries.has(id)) {
      const source = document.getElementById(id), text = source ? source.textContent : null;
      const other = text && text.startsWith('{"same":') ? JSON.parse(text).same : null;
      entries.set(id, other ? entryOf(other) : text);
    }
    return entries.get(id);
  }

  let kept = null;
  const names = () => (kept = kept || JSON.parse(document.getElementById("names").textContent));

  function themed(text, dark, narrow, width) {
    const picture = JSON.parse(dark ? text.replace(/#[0-9a-f]{6}/g, (c) => DARK[c] || c) : text).figure;
    const layout = picture.layout;
    for (const trace of picture.data) if (trace.meta && trace.meta.names) trace.text = trace.meta.names.map((n) => names()[n]);
    const ink = dark ? "#d5d9df" : "#33383f", grid = dark ? "#2c323a" : "#e8eaed", line = dark ? "#5a626d" : "#aab1bb";
    if (narrow && layout.meta && layout.meta.stack) stack(layout);
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { family: 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif', size: narrow ? 11 : 12, color: ink };
    layout.hoverlabel = Object.assign({ font: { size: 12 } }, layout.hoverlabel);
    layout.xaxis = layout.xaxis || {};
    layout.yaxis = layout.yaxis || {};
    for (const name of Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k))) {
      layout[name] = Object.assign({ gridcolor: grid, linecolor: line, tickcolor: line, zeroline: false, automargin: true, ticks: "outside", ticklen: 4, showline: name[0] === "x" }, layout[name]);
      layout[name].title = Object.assign({ standoff: 8, font: { size: narrow ? 11 : 12 } }, layout[name].title);
    }
    if (width) layout.width = width;
    layout.autosize = !width;
    layout.dragmode = narrow ? false : "zoom";
    return picture;
  }

  function stack(layout) {
    const panels = layout.meta.stack, gap = 0.13, size = (1 - gap * (panels - 1)) / panels;
    for (let i = 0; i < panels; i++) {
      const suffix = i ? String(i + 1) : "";
      layout["xaxis" + suffix].domain = [0, 1];
      const top = 1 - i * (size + gap);
      layout["yaxis" + suffix].domain = [Math.max(0, top - size), top];
      layout["yaxis" + suffix].showticklabels = true;
    }
    layout.height = 300 * panels;
  }

  function draw(figure) {
    const id = figure.dataset.figure;
    figure.querySelectorAll(":scope > :not(figcaption)").forEach((n) => n.remove());
    figure.dataset.drawn = "yes";
    const text = id ? entryOf(id) : null;
    if (!text) { figure.append(element("p", "absent", "Absent for this choice.")); return; }
    const entry = JSON.parse(text);
    if (entry.absent) { figure.append(element("p", "absent", entry.absent)); return; }
    if (entry.figure) {
      const area = element("div", "plot-area");
      area.setAttribute("role", "img");
      area.setAttribute("aria-label", entry.alt);
      area.style.minHeight = entry.figure.layout.height + "px";
      figure.append(area);
      const picture = themed(text, isDark(), area.clientWidth < 560, printing ? 680 : null);
      library().newPlot(area, picture.data, picture.layout, { displayModeBar: false, responsive: true, doubleClick: "reset" });
      area.style.minHeight = "";
    }
    figure.append(tools(figure, entry, text));
  }

  function tools(figure, entry, text) {
    const bar = element("div", "tools");
    if (entry.table && entry.figure) {
      const details = document.createElement("details");
      details.append(element("summary", "", "As a table"));
      details.addEventListener("toggle", () => { if (details.open && !details.querySelector("table")) details.append(tableOf(entry.table)); });
      bar.append(details);
    } else if (entry.table) {
      figure.append(tableOf(entry.table));
    }
    if (entry.figure) bar.append(button("SVG", () => saveFigure(figure, text)));
    if (entry.table) bar.append(button("CSV", () => save(nameOf(figure) + ".csv", csv([entry.table.headers, ...entry.table.rows]), "text/csv")));
    return bar;
  }

  function tableOf(table) {
    const scroll = element("div", "scroll");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", table.caption);
    const node = document.createElement("table");
    node.append(element("caption", "quiet", table.caption));
    const numeric = new Set(table.numeric);
    const row = (cells, tag) => {
      const line = document.createElement("tr");
      cells.forEach((cell, i) => {
        const name = tag === "th" || i === 0 ? "th" : "td";
        const field = element(name, numeric.has(i) ? "n" : "", cell);
        if (name === "th") field.scope = tag === "th" ? "col" : "row";
        line.append(field);
      });
      return line;
    };
    const head = document.createElement("thead"), body = document.createElement("tbody");
    head.append(row(table.headers, "th"));
    table.rows.forEach((cells) => body.append(row(cells, "td")));
    node.append(head, body);
    scroll.append(node);
    return scroll;
  }

  const watcher = new IntersectionObserver((seen) => seen.forEach((s) => { if (s.isIntersecting) draw1(s.target); }), { rootMargin: "200px" });
  function draw1(figure) { if (figure.dataset.drawn !== "yes") draw(figure); }
  function redraw() {
    document.querySelectorAll("figure.plot[data-drawn=yes]").forEach((f) => { f.dataset.drawn = "stale"; });
    const view = shownView();
    if (view) view.querySelectorAll("figure.plot[data-drawn=stale]").forEach(draw);
  }

  function choose(panel) {
    const choice = [...panel.querySelectorAll("select")].map((s) => s.value).join("-");
    panel.querySelectorAll("figure[data-slot]").forEach((figure) => {
      figure.dataset.figure = panel.dataset.panel + "/" + figure.dataset.slot + "/" + choice;
      if (figure.dataset.drawn) draw(figure);
    });
  }

  // ---------------------------------------------------------------- views
  const shownView = () => main.querySelector(":scope > section.view:not([hidden])");
  function viewFor(key) {
    const section = [...main.querySelectorAll(":scope > section.view")].find((s) => s.dataset.view === key);
    if (section) return section;
    const template = [...main.querySelectorAll(":scope > template")].find((t) => t.dataset.view === key);
    if (!template) return null;
    main.append(document.importNode(template.content, true));
    const made = main.lastElementChild;
    made.dataset.title = template.dataset.title;
    prepare(made);
    return made;
  }

  function prepare(view) {
    view.querySelectorAll(".panel").forEach((panel) => {
      choose(panel);
      panel.addEventListener("change", () => choose(panel));
    });
    view.querySelectorAll("button[data-save]").forEach((b) => b.addEventListener("click", () => saveTable(b)));
    view.querySelectorAll("button[data-save-text]").forEach((b) => b.addEventListener("click", () => save(b.dataset.saveText, b.closest("section").querySelector("pre[data-text]").textContent, "text/plain")));
    view.querySelectorAll("audio").forEach(follow);
    view.querySelectorAll("figure.plot").forEach((f) => watcher.observe(f));
  }

  function open(focus) {
    const first = main.querySelector(":scope > section.view");
    const view = viewFor(location.hash.slice(1)) || first;
    main.querySelectorAll(":scope > section.view").forEach((s) => {
      if (s !== view) s.querySelectorAll("audio").forEach((a) => a.pause());
      s.hidden = s !== view;
    });
    document.title = view.dataset.title + " · " + document.querySelector(".brand-title").textContent;
    document.querySelectorAll("nav a").forEach((a) => {
      const here = a.getAttribute("href") === "#" + view.dataset.view;
      if (here) a.setAttribute("aria-current", "page"); else a.removeAttribute("aria-current");
    });
    view.querySelectorAll("figure.plot[data-drawn=stale]").forEach(draw);
    toggleMenu(false);
    if (focus) {
      window.scrollTo(0, 0);
      const heading = view.querySelector("h1");
      if (heading) heading.focus({ preventScroll: true });
    }
  }

  function toggleMenu(wanted) {
    const side = document.querySelector(".side");
    const now = wanted === undefined ? !side.classList.contains("open") : wanted;
    side.classList.toggle("open", now);
    document.getElementById("menu").setAttribute("aria-expanded", String(now));
  }

  // ---------------------------------------------------------------- listening
  function follow(audio) {
    const head = audio.closest(".clip").querySelector(".playhead");
    const total = Number(audio.dataset.seconds) || 1;
    const place = () => {
      if (head) head.style.left = Math.min(100, (100 * audio.currentTime) / total) + "%";
      if (!audio.paused && !SLOW) requestAnimationFrame(place);
    };
    audio.addEventListener("play", () => {
      document.querySelectorAll("audio").forEach((other) => { if (other !== audio) other.pause(); });
      if (head) head.classList.add("on");
      place();
    });
    audio.addEventListener("timeupdate", place);
  }

  // ---------------------------------------------------------------- saving
  const csv = (rows) => rows.map((r) => r.map((c) => (/[",\n]/.test(c) ? '"' + c.replaceAll('"', '""') + '"' : c)).join(",")).join("\n") + "\n";
  function nameOf(node) {
    const view = node.closest(".view");
    const label = node.querySelector("caption, figcaption");
    return (decodeURIComponent(view.dataset.view) + " " + (label ? label.textContent : "")).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "_").replace(/^_|_$/g, "").slice(0, 80);
  }
  function save(name, content, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  function saveTable(pressed) {
    const block = pressed.closest(".table-block"), kind = pressed.dataset.save;
    if (kind === "csv") {
      const rows = [...block.querySelectorAll("tr")].map((r) => [...r.children].map((c) => c.dataset.value || c.textContent));
      save(nameOf(block) + ".csv", csv(rows), "text/csv");
    } else {
      const endings = { LaTeX: ".tex", Markdown: ".md" };
      save(nameOf(block) + (endings[kind] || ".txt"), block.querySelector("template[data-export=" + kind + "]").content.textContent, "text/plain");
    }
  }
  async function saveFigure(figure, text) {
    const area = figure.querySelector(".plot-area");
    const picture = themed(text, false, false, null);
    const size = { format: "svg", width: Math.max(area.clientWidth, 480), height: picture.layout.height };
    const image = await library().toImage({ data: picture.data, layout: picture.layout }, size);
    save(nameOf(figure) + ".svg", decodeURIComponent(image.slice(image.indexOf(",") + 1)), "image/svg+xml");
  }

  function element(tag, name, content) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (content !== undefined) node.textContent = content;
    return node;
  }
  function button(label, action) {
    const node = element("button", "", label);
    node.type = "button";
    node.addEventListener("click", action);
    return node;
  }

  // ---------------------------------------------------------------- start
  root.dataset.theme = THEMES.includes(remembered()) ? remembered() : "auto";
  document.getElementById("theme").textContent = "Theme: " + THEME_NAMES[root.dataset.theme];
  document.getElementById("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % 3]));
  darkSystem.addEventListener("change", redraw);
  document.getElementById("print").addEventListener("click", () => window.print());
  document.getElementById("menu").addEventListener("click", () => toggleMenu());
  document.querySelector(".skip").addEventListener("click", (e) => { e.preventDefault(); const h = shownView().querySelector("h1"); if (h) h.focus(); });
  window.addEventListener("beforeprint", () => { printing = true; shownView().querySelectorAll("figure.plot").forEach(draw); });
  window.addEventListener("afterprint", () => { printing = false; redraw(); });
  window.addEventListener("hashchange", () => open(true));
  const first = main.querySelector(":scope > section.view");
  if (first) { prepare(first); open(false); }
})();
