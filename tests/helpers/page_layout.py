"""What a browser is asked about the layout of a page: a script in parts; pages share the first and the last."""

BEGIN = """
function measure() {
  const all = (selector, within) => [...(within || document).querySelectorAll(selector)];
  const text = (element) => element.textContent.trim().slice(0, 40);
  const wrong = [], pairs = {}, wide = innerWidth;
  const overflows = (when) => {
    if (document.documentElement.scrollWidth > wide) wrong.push("scrolls sideways " + when);
  };
  overflows("at first");
  all("details").forEach((one) => { one.open = true; });
  overflows("with details open");
"""
COLOURS = """
  const paper = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  all("body *").forEach((one) => {
    if (!["SCRIPT", "title"].includes(one.tagName) &&
        [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) {
      const style = getComputedStyle(one);
      pairs[(one.tagName === "text" ? style.fill : style.color) + " on " + paper(one)] = text(one);
    }
  });
"""
"""Every pair of text and background colours, by one text that has it."""
MEASURE = (
    BEGIN
    + """
  all("h1, h2, h3, p, li, dd, dt, pre, th, td, nav a, summary, svg text").forEach((one) => {
    if (one.closest(".numbers div, .scroll, thead")) return;
    const box = one.getBoundingClientRect();
    if (box.left < -0.5 || box.right > wide + 0.5) wrong.push("leaves the page: " + one.tagName + " " + text(one));
    if (one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline" && one.tagName !== "text")
      wrong.push("is cropped: " + one.tagName + " " + text(one));
  });
  all(".numbers div, .scroll").forEach((one) => {
    if (wide < 640 && (one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1))
      wrong.push("a table is cut: " + text(one));
  });
  all(".word").forEach((one) => {
    const range = document.createRange();
    range.selectNodeContents(one);
    const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size;
    if (lines > 1 && one.getBoundingClientRect().width < 0.8 * one.parentElement.clientWidth)
      wrong.push("is broken: " + text(one));
  });
  all(".map .sums").forEach((one) => {
    const last = one.previousElementSibling, top = one.getBoundingClientRect().top;
    if (!last || Math.abs(last.getBoundingClientRect().top - top) > 1) wrong.push("sums stand alone: " + text(one));
  });
  all(".chart svg[role=img]").forEach((picture) => {
    const boxes = all("text:not(.name)", picture).map((one) => [one, one.getBoundingClientRect()]);
    boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)
        wrong.push("overlap in a chart: " + text(one) + ", " + text(other));
    }));
  });
"""
    + COLOURS
    + """
  return {wrong: wrong.slice(0, 20), pairs, charts: all(".chart svg[role=img]").length};
}
"""
)
"""For pages on runs."""
