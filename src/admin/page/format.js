// Everything that comes from the load balancer is shown as text, never as markup. What is unknown is shown as “–”, not as zero.

const $ = id => document.getElementById(id);
const objectsIn = x => Array.isArray(x) ? x.filter(item => item && typeof item === 'object') : [];
const textsIn = x => Array.isArray(x) ? x.filter(nonEmptyText) : [];
const isKnown = x => typeof x === 'number' && Number.isFinite(x);
const nonEmptyText = x => typeof x === 'string' && x !== '' ? x : null;
const nameOf = thing => nonEmptyText(thing.name) ?? 'unnamed';
const integerFormat = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const compactFormat = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });
const timeFormat = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const dateFormat = new Intl.DateTimeFormat('en', { dateStyle: 'medium' });
/** No count is below zero: a quota may be overdrawn, and then nothing is left. */
const atLeastZero = x => isKnown(x) ? Math.max(0, x) : null;
const formatCount = x => isKnown(x) ? integerFormat.format(Math.max(0, x)) : '–';
const amountFormat = new Intl.NumberFormat('en', { maximumFractionDigits: 6 });
const formatAmount = x => isKnown(x) ? amountFormat.format(Math.max(0, x)) : '–';
const formatCompact = x => isKnown(x) ? compactFormat.format(Math.max(0, x)) : '–';
const formatPercent = x => isKnown(x) ? (x > 0 && x < 0.01 ? '< 1 %' : `${Math.round(Math.max(0, x) * 100)} %`) : '–';
const formatMillis = x => !isKnown(x) ? '–' : x < 1000 ? `${x > 0 && x < 1 ? x : Math.round(Math.max(0, x))} ms` : x < 600000 ? `${(x / 1000).toFixed(x < 9950 ? 1 : 0)} s` : formatDuration(x / 1000);
const formatDecimal = x => isKnown(x) ? x >= 10000 ? formatCompact(x) : (x >= 10 || Number.isInteger(x) ? formatCount(x) : x.toFixed(x < 1 ? 2 : 1)) : '–';
const pluralize = (n, one, more = `${one}s`) => `${formatCount(n)} ${n === 1 ? one : more}`;

/** As many bytes as people read. */
function formatBytes(x) {
  if (!isKnown(x)) return '–';
  const power = x < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(x) / 10));
  const value = Math.max(0, x) / 1024 ** power;
  return `${power === 0 || value >= 100 ? formatCount(value) : value.toFixed(1)} ${['B', 'KiB', 'MiB', 'GiB', 'TiB'][power]}`;
}

/** A time in the time zone of the browser, with the day unless that is today. */
function formatTime(value) {
  const at = new Date(value ?? NaN);
  if (Number.isNaN(at.getTime())) return '–';
  const day = dateFormat.format(at);
  return day === dateFormat.format(new Date()) ? timeFormat.format(at) : `${day}, ${timeFormat.format(at)}`;
}

function formatDay(value) {
  const at = new Date(value ?? NaN);
  return Number.isNaN(at.getTime()) ? '–' : dateFormat.format(at);
}

function formatDuration(seconds) {
  if (!isKnown(seconds)) return '–';
  const s = Math.max(0, Math.round(seconds)), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  if (s < 60) return `${s} s`;
  if (m < 60) return `${m} min ${s % 60} s`;
  return h < 24 ? `${h} h ${m % 60} min` : `${d} d ${h % 24} h`;
}

/** How long ago a time is; `null` if it is not known. */
function secondsSince(value) {
  const at = new Date(value ?? NaN).getTime();
  return Number.isNaN(at) ? null : Math.max(0, (Date.now() - at) / 1000);
}
