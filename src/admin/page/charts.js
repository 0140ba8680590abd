// Charts of the last 15 minutes. A curve has gaps where nothing is known. All charts show the same moment.

const rate = (row, step) => row.map(x => isKnown(x) ? x / step : null);
/** The sum over the minute that ends with each step, as quotas are counted. */
const perMinute = (row, step) => row.map((x, i) => isKnown(x) && i + 1 >= 60 / step ? sum(row, i + 1 - Math.round(60 / step), i + 1) : null);
const withGaps = row => row.map(x => isKnown(x) ? x : null);
const PLOTS = [
  { title: 'Requests per second', format: formatDecimal, curves: [['all', 'requests', rate, 'curve'], ['429', 'throttled', rate, 'curve bars dashed'], ['failed', 'failed', rate, 'curve bars']] },
  { title: 'First byte', format: formatMillis, curves: [['p50', 'p50_ms', withGaps, 'curve'], ['p95', 'p95_ms', withGaps, 'curve dashed']] },
  { title: 'Tokens per minute', format: formatCompact, curves: [['input', 'input_tokens', perMinute, 'curve'], ['output', 'output_tokens', perMinute, 'curve dashed']] },
  { title: 'In flight', format: formatDecimal, curves: [['requests', 'in_flight', withGaps, 'curve']] },
  { title: 'Rerouted per minute', format: formatDecimal, curves: [['failovers', 'failovers', perMinute, 'curve'], ['429s', 'retries_429', perMinute, 'curve dashed']] },
];
const HEIGHT = 120, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 20;

// The moment that all charts show. The pointer shows one for as long as it is on a chart; the slider keeps one.
let pointedFraction = null, keptMoment = null;

function createSvg(name, attributes, parent) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) updateAttribute(node, key, value);
  parent?.append(node);
  return node;
}

function createPlot(plot) {
  const figure = document.createElement('figure'), caption = document.createElement('figcaption'), heading = document.createElement('h3');
  figure.className = 'panel';
  heading.textContent = plot.title;
  caption.append(heading);
  const svg = createSvg('svg', { role: 'img', 'aria-label': plot.title });
  const grid = createSvg('path', { class: 'grid' }, svg), paths = [], values = [];
  const valueLabels = [0, 1, 2].map(() => createSvg('text', { 'text-anchor': 'end', x: LEFT - 6 }, svg));
  const timeLabels = [0, 1, 2, 3].map(i => createSvg('text', { 'text-anchor': i === 3 ? 'end' : 'middle', y: HEIGHT - 5 }, svg));
  const cursor = createSvg('path', { class: 'cursor' }, svg), momentLabel = createSvg('text', { class: 'moment-label', 'text-anchor': 'middle', y: HEIGHT - 5 }, svg);
  plot.curves.forEach(([label, , , style], i) => {
    paths.push(createSvg('path', { class: `${style} c${i}` }, svg));
    const entry = document.createElement('span'), sample = createSvg('svg', { 'aria-hidden': 'true' }), value = document.createElement('b');
    createSvg('path', { class: `${style} c${i}`, d: style.includes('bars') ? 'M3 10V1M8 10V4M13 10V2' : 'M1 5H15' }, sample);
    entry.append(sample, ` ${label} `, value);
    values.push(value);
    caption.append(entry);
  });
  const view = { ...plot, svg, grid, valueLabels, timeLabels, paths, values, cursor, momentLabel, width: 0 };
  figure.append(caption, svg);
  $('plots').append(figure);
  new ResizeObserver(([entry]) => {
    view.width = Math.round(entry.contentRect.width);
    if (latest) showPlot(view, timelineOf(latest));
  }).observe(svg);
  const point = fraction => {
    pointedFraction = fraction;
    if (latest) showPlots(timelineOf(latest));
  };
  svg.addEventListener('pointermove', event => point((event.offsetX - LEFT) / (view.width - LEFT - RIGHT)));
  svg.addEventListener('pointerleave', () => point(null));
  return view;
}

const plots = PLOTS.map(createPlot);

/** A round number at or above, of which the half is round, too. */
function axisMaximum(highest) {
  if (!(highest > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(highest));
  return [1, 2, 4, 6, 8, 10].find(n => n * power >= highest * 0.999) * power;
}

const sizeOf = steps => Math.max(0, ...PLOTS.flatMap(plot => plot.curves.map(([, name]) => steps.row(name).length)));
const timeOf = (i, size, { step, until }) => new Date((isKnown(until) ? until : Date.now()) - (size - i) * step * 1000);

/** The step that is shown; `null` for the last one, which goes on. */
function momentIndex(steps, size) {
  if (size === 0) return null;
  if (pointedFraction !== null) return Math.min(size - 1, Math.max(0, Math.round(pointedFraction * (size - 1))));
  if (keptMoment === null) return null;
  const index = size - Math.round((timeOf(size, size, steps).getTime() - keptMoment) / (steps.step * 1000));
  return index < 0 ? null : Math.min(size - 1, index);
}

function showPlots(steps) {
  const size = sizeOf(steps), index = momentIndex(steps, size), slider = $('moment');
  if (index === null) keptMoment = null;
  updateAttribute(slider, 'max', String(Math.max(1, size - 1)));
  if (pointedFraction === null) slider.value = index ?? slider.max;
  const moment = index === null ? null : timeOf(index, size, steps);
  setText($('moment-text'), moment === null ? 'now' : `${timeFormat.format(moment)}, −${formatDuration((size - index) * steps.step)}`);
  updateAttribute(slider, 'aria-valuetext', $('moment-text').textContent);
  plots.forEach(plot => showPlot(plot, steps));
}

function showPlot(plot, steps) {
  const { width, svg } = plot, rows = plot.curves.map(([, name, transform]) => transform(steps.row(name), steps.step));
  const size = Math.max(...rows.map(row => row.length));
  if (width <= LEFT + RIGHT) return;
  const top = axisMaximum(Math.max(...rows.flat().filter(isKnown))), floor = HEIGHT - BOTTOM;
  const x = i => +(LEFT + (width - LEFT - RIGHT) * (size > 1 ? i / (size - 1) : 1)).toFixed(1);
  const y = value => +(floor - (floor - TOP) * value / top).toFixed(1);
  updateAttribute(svg, 'viewBox', `0 0 ${width} ${HEIGHT}`);
  updateAttribute(plot.grid, 'd', [0, 0.5, 1].map(part => `M${LEFT} ${y(top * part)}H${width - RIGHT}`).join(''));
  plot.valueLabels.forEach((label, i) => {
    updateAttribute(label, 'y', String(y(top * i / 2) + 4));
    setText(label, plot.format(top * i / 2));
  });
  const index = momentIndex(steps, size), minutes = Math.max(1, Math.round((size + 1) * steps.step / 60));
  plot.timeLabels.forEach((label, i) => {
    const before = minutes * (3 - i) / 3, at = x(Math.min(size - 1, Math.max(0, size - before * 60 / steps.step)));
    updateAttribute(label, 'x', String(at));
    updateAttribute(label, 'visibility', index !== null && Math.abs(x(index) - at) < 50 ? 'hidden' : 'visible');
    setText(label, i === 3 ? 'now' : `−${formatDecimal(before)}${i === 0 || width > 230 ? ' min' : ''}`);
  });
  let ground = [];
  for (let i = rows.length - 1; i >= 0; i -= 1) {
    const isBars = plot.curves[i][3].includes('bars');
    updateAttribute(plot.paths[i], 'd', isBars ? barsPath(rows[i], ground, x, y) : curvePath(rows[i], x, y));
    if (isBars) ground = rows[i];
  }
  updateAttribute(plot.cursor, 'd', index === null ? '' : `M${x(index)} ${TOP}V${floor}`);
  updateAttribute(plot.momentLabel, 'x', String(index === null ? 0 : Math.min(width - 30, Math.max(30, x(index)))));
  setText(plot.momentLabel, index === null ? '' : timeFormat.format(timeOf(index, size, steps)));
  rows.forEach((row, i) => setText(plot.values[i], plot.format(index === null ? row.at(-1) : row[index])));
  updateAttribute(svg, 'aria-label', describePlot(plot, rows, size, steps, index));
}

/** A line with a hole where a value is missing, and a dot for one alone. */
function curvePath(row, x, y) {
  let d = '', pen = 'M';
  row.forEach((value, i) => {
    if (!isKnown(value)) return pen = 'M';
    d += `${pen}${x(i)} ${y(value)}`;
    if (pen === 'M' && !isKnown(row[i + 1])) d += 'h0';
    pen = 'L';
  });
  return d;
}

/** Bars upon others, of at least 3 pixels: one failure among thousands shows. */
function barsPath(row, ground, x, y) {
  return row.map((value, i) => {
    const below = Math.min(y(ground[i] ?? 0), ground[i] > 0 ? y(0) - 3 : y(0));
    return value > 0 ? `M${x(i)} ${below}V${Math.min(y(value + (ground[i] ?? 0)), below - 3)}` : '';
  }).join('');
}

function describePlot(plot, rows, size, steps, index) {
  const parts = plot.curves.map(([label], i) => {
    const row = rows[i], values = row.filter(isKnown);
    if (!values.length) return `${label}: unknown`;
    const highest = Math.max(...values), at = timeFormat.format(timeOf(row.indexOf(highest), size, steps));
    if (index !== null) return `${label}: ${plot.format(row[index])} at ${timeFormat.format(timeOf(index, size, steps))}`;
    return highest > 0 ? `${label}: now ${plot.format(row.at(-1))}, highest ${plot.format(highest)} at ${at}` : `${label}: none`;
  });
  return `${plot.title}, last 15 minutes. ${parts.join('. ')}.`;
}

/** The slider at its end follows the present. */
function keepMoment() {
  if (!latest) return;
  const steps = timelineOf(latest), size = sizeOf(steps), index = Number($('moment').value);
  keptMoment = index >= size - 1 ? null : timeOf(index, size, steps).getTime();
  showPlots(steps);
}
