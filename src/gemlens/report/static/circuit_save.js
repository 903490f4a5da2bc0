// The graph file with the reader's view in it, and the pinned subgraph as a picture.
const CircuitSave = (() => {
  const PAINT = ["fill", "stroke", "stroke-width", "stroke-opacity", "opacity", "font-family", "font-size", "font-weight"];

  function hand(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // Nothing of the file is lost: labels go where it has labels, pins and groups into qParams.
  function json(data, model, state) {
    const { file, links } = data;
    const nodes = file.nodes.map((node, i) => (state.view.labels[i] === undefined ? node : { ...node, clerp: state.view.labels[i] }));
    const written = links.weight.map((weight, l) => links.extra[l] ?? {
      source: model.id(links.source[l]), target: model.id(links.target[l]), weight,
    });
    const { metadata, qParams, nodes: _, ...rest } = file;
    return JSON.stringify({ metadata, qParams: state.params(), nodes, links: written, ...rest });
  }

  // The picture on its own: what the page's style says becomes attributes, since the style stays behind.
  function picture(root) {
    const copy = root.cloneNode(true);
    const pairs = [[root, copy], ...[...root.querySelectorAll("*")].map((each, k) => [each, copy.querySelectorAll("*")[k]])];
    for (const [from, to] of pairs) {
      const style = getComputedStyle(from);
      if (["rect", "path", "text"].includes(from.tagName))
        for (const name of PAINT) {
          const value = style.getPropertyValue(name);
          if (value) to.setAttribute(name, plain(name, value));
        }
      for (const name of ["class", "tabindex", "role", "aria-pressed", "aria-label"]) to.removeAttribute(name);
      for (const name of Object.keys(to.dataset ?? {})) delete to.dataset[name];
    }
    const ground = document.createElementNS(root.namespaceURI, "rect");
    ground.setAttribute("width", "100%");
    ground.setAttribute("height", "100%");
    ground.setAttribute("fill", plain("fill", getComputedStyle(root.parentElement).backgroundColor));
    copy.prepend(ground);
    copy.setAttribute("xmlns", root.namespaceURI);
    return new XMLSerializer().serializeToString(copy);
  }

  // Drawing programs know no oklch: colours are read back from a pixel.
  const dot = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  function plain(name, value) {
    if (!["fill", "stroke"].includes(name) || value === "none") return value;
    dot.clearRect(0, 0, 1, 1);
    dot.fillStyle = value;
    dot.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = dot.getImageData(0, 0, 1, 1).data;
    return a === 0 ? "none" : `rgb(${r},${g},${b})`;
  }

  function png(root, done) {
    const source = picture(root);
    const image = new Image();
    const [width, height] = [Number(root.getAttribute("width")), Number(root.getAttribute("height"))];
    image.onload = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [2 * width, 2 * height];
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(done, "image/png");
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}`;
  }

  return { hand, json, picture, png };
})();
