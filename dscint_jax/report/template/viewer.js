// Paints pictures and the maps over them as the sliders say, on this page and the pages of studies.
"use strict";

function field(id) {
  return document.getElementById(id);
}

// A function that paints an item (views, picture, maps) on its canvas.
function viewer(display) {
  const colours = Uint8Array.from(display.colours.match(/../g), (pair) => parseInt(pair, 16));

  // A picture's shades, 0 to 255, once they are decoded.
  async function shades(text) {
    const image = new Image();
    image.src = "data:image/webp;base64," + text;
    await image.decode();
    return image;
  }

  function pixels(image, width, height) {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height);
  }

  async function decoded(item) {
    const width = display.width * item.views.length;
    if (!item.picturePixels) {
      item.picturePixels = pixels(await shades(item.picture), width, display.height);
      item.mapPixels = {};
    }
    const name = field("map").value;
    if (name && item.maps[name] && !item.mapPixels[name]) {
      item.mapPixels[name] = pixels(await shades(item.maps[name]), width, display.height);
    }
    return item.mapPixels[name];
  }

  async function paint(item) {
    const heat = await decoded(item);
    const source = item.picturePixels;
    const canvas = item.canvas;
    canvas.width = source.width;
    canvas.height = source.height;
    const painted = new ImageData(source.width, source.height);
    const wide = Number(field("window").value);
    const low = Number(field("level").value) - wide / 2;
    const opacity = heat ? Number(field("opacity").value) : 0;
    // Where the map says nothing, or what compression makes of nothing, the scan is seen as it is.
    for (let i = 0; i < painted.data.length; i += 4) {
      const overScan = heat ? opacity * Math.sqrt(Math.max(0, heat.data[i] - 8) / 247) : 0;
      const share = ((source.data[i] / 255) * display.clip - low) / wide;
      const grey = 255 * (1 - Math.min(1, Math.max(0, share)));
      for (let k = 0; k < 3; k += 1) {
        const over = overScan ? colours[3 * heat.data[i] + k] : 0;
        painted.data[i + k] = (1 - overScan) * grey + overScan * over;
      }
      painted.data[i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(painted, 0, 0);
    canvas.dataset.painted = "yes";
  }

  return paint;
}

// Calls `changed` when the map or a slider of the display is moved; shows the sliders' values.
function onDisplayChange(changed) {
  for (const id of ["map", "opacity", "window", "level"]) {
    field(id).addEventListener("input", changed);
  }
  for (const output of document.querySelectorAll(".controls output")) {
    const slider = field(output.htmlFor.value);
    slider.addEventListener("input", () => {
      output.textContent = Number(slider.value).toFixed(2);
    });
  }
}
