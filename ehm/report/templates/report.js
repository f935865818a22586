"use strict";
// The page is complete without this: it adds the value under the pointer to each chart, and buttons that copy.
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const reading = svg.closest("figure").querySelector(".reading");
  const cursor = svg.querySelector(".cursor");
  const curves = [...svg.querySelectorAll(".curve")].map((path) => ({
    places: path.getAttribute("d").slice(1).split(/[ML]/).map((point) => Number(point.split(",")[0])),
    texts: path.dataset.readings.split("|"),
    name: path.dataset.name,
  }));
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const distance = (curve, index) => Math.abs(curve.places[index] - x);
    const texts = curves.map((curve) => {
      const nearest = curve.places.reduce((best, _, index) => (distance(curve, index) < distance(curve, best) ? index : best), 0);
      cursor.setAttribute("x1", curve.places[nearest]);
      cursor.setAttribute("x2", curve.places[nearest]);
      return curves.length > 1 ? `${curve.name}, ${curve.texts[nearest]}` : curve.texts[nearest];
    });
    cursor.style.visibility = "visible";
    reading.textContent = texts.join("; ");
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    reading.textContent = "";
  });
}
for (const command of document.querySelectorAll(".command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command.querySelector("pre").textContent);
    button.textContent = "Copied";
  });
  if (navigator.clipboard) command.append(button);
}
