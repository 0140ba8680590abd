// Records, what expires, and the configuration.

/** What ends within so many days is listed. */
const DAYS_BEFORE_END = 30;
const DAY = 86400;

function showOperations(status) {
  showSinks(objectsIn(status.sinks), status.sinks);
  showExpiries(objectsIn(status.certificates), objectsIn(status.credentials), status);
  showFacts(status);
}

/** How a sink does: sign, word and level. */
function sinkLookOf(sink) {
  if (nonEmptyText(sink.failing_since)) return ['✕', 'not delivered', 'bad'];
  if (sink.dropped_last_15_minutes > 0) return ['◑', 'drops records', 'warn'];
  return sink.failing_since === null ? ['✓', 'delivers', 'ok'] : ['?', 'unknown', 'unknown'];
}

function showSinks(sinks, reported) {
  updateList($('sink-table'), sinks, 'sink-row', sink => sink.sink, (f, sink) => {
    setBadge(f.state, sinkLookOf(sink));
    setText(f.name, nonEmptyText(sink.sink) ?? 'unnamed');
    setNumber(f.backlog, sink.backlog_bytes, bytes => !isKnown(sink.backlog_records) ? formatBytes(bytes) : sink.backlog_records === 0 && bytes === 0 ? '0' : `${formatCount(sink.backlog_records)}, ${formatBytes(bytes)}`);
    f.backlog.tip = sink.backlog_records === null ? 'The records of an earlier process are not counted.' : '';
    setText(f.oldest, formatDuration(sink.backlog_seconds));
    setText(f.delivery, nonEmptyText(sink.last_delivery) ? formatTime(sink.last_delivery) : sink.last_delivery === null ? 'none yet' : '–');
    setNumber(f.dropped, sink.dropped, dropped => sink.dropped_last_15_minutes > 0 ? `${formatCount(dropped)} (${formatCount(sink.dropped_last_15_minutes)} now)` : formatCount(dropped));
    setNumber(f.dead, sink.dead_letters);
    const failing = nonEmptyText(sink.failing_since) ? `since ${formatTime(sink.failing_since)}: ` : '';
    const at = !failing && nonEmptyText(sink.last_error_at) ? ` (${formatTime(sink.last_error_at)})` : '';
    setText(f.error, nonEmptyText(sink.last_error) ? `${failing}${sink.last_error}${at}` : sink.last_error === null ? 'none' : '–');
  });
  setVisible($('sink-table'), sinks.length > 0);
  setVisible($('no-sinks'), Array.isArray(reported) && sinks.length === 0);
}

/** When a credential ends, and why it cannot be renewed. */
function describeExpiry(entry) {
  const part = nonEmptyText(entry.part)?.replaceAll('_', ' ');
  return [part, describeEnd(entry), nonEmptyText(entry.renewal_error) && `cannot be renewed: ${entry.renewal_error}`].filter(Boolean).join(', ');
}

function describeEnd(entry) {
  const left = entry.expires_in_seconds;
  if (!isKnown(left)) return `ends ${formatTime(entry.expires)}`;
  return left < 0 ? `expired ${formatTime(entry.expires)}, ${formatDuration(-left)} ago` : `ends ${formatTime(entry.expires)}, in ${formatDuration(left)}`;
}

function showExpiries(certificates, credentials, status) {
  const listed = [...certificates.map(entry => ({ ...entry, name: entry.certificate, more: `${describeEnd(entry)}; used by ${textsIn(entry.used_by).join(', ') || '–'}` })),
    ...credentials.map(entry => ({ ...entry, name: `credential of ${nonEmptyText(entry.backend) ?? 'unnamed'}`, more: describeExpiry(entry) }))];
  const isDue = entry => !isKnown(entry.expires_in_seconds) || entry.expires_in_seconds < DAYS_BEFORE_END * DAY || nonEmptyText(entry.renewal_error);
  const left = entry => isKnown(entry.expires_in_seconds) ? entry.expires_in_seconds : -Infinity;
  const due = listed.filter(isDue).sort((a, b) => left(a) - left(b)), later = listed.filter(entry => !isDue(entry)).sort((a, b) => left(a) - left(b));
  updateList($('expiries'), due, 'expiry-item', entry => entry.name, (f, entry) => {
    const look = left(entry) === -Infinity ? ['?', 'unknown', 'unknown'] : left(entry) < 0 ? ['✕', 'expired', 'bad'] : nonEmptyText(entry.renewal_error) ? ['▲', 'not renewed', 'bad'] : ['◑', 'ends soon', 'warn'];
    setBadge(f.state, look);
    setText(f.name, nonEmptyText(entry.name) ?? 'unnamed');
    setText(f.more, entry.more);
  });
  const counts = [certificates.length && pluralize(certificates.length, 'certificate'), credentials.length && pluralize(credentials.length, 'credential')].filter(Boolean).join(' and ');
  const first = later[0], others = `${due.length ? `${pluralize(later.length, 'other')} end` : `${counts} end`}`;
  const isKnownList = Array.isArray(status.certificates) || Array.isArray(status.credentials);
  setText($('expiries-note'), first ? `${others}${later.length === 1 ? 's' : ''} in more than ${DAYS_BEFORE_END} days; the first on ${formatDay(first.expires)}: ${nonEmptyText(first.name) ?? 'unnamed'}`
    : listed.length ? '' : isKnownList ? 'None has a known end.' : '–');
  setVisible($('expiries-note'), $('expiries-note').textContent !== '');
}

/** Whether traces reach their collector. */
function describeTraces(traces) {
  if (traces === null) return 'not configured';
  if (typeof traces !== 'object' || Array.isArray(traces)) return '–';
  const dropped = traces.dropped_spans > 0 ? `, ${pluralize(traces.dropped_spans, 'span')} dropped` : '';
  const failing = nonEmptyText(traces.failing_since);
  const state = failing ? `not delivered since ${formatTime(failing)}: ${nonEmptyText(traces.last_error) ?? 'unknown'}` : nonEmptyText(traces.last_delivery) ? `delivered, last ${formatTime(traces.last_delivery)}` : 'none yet';
  return `${state}${dropped}`;
}

function showFacts(status) {
  const configuration = status.configuration ?? {}, process = status.process ?? {};
  const upgrade = Array.isArray(configuration.needs_upgrade) ? configuration.needs_upgrade.join(', ') || 'nothing' : '–';
  const state = process.stopping === true ? 'stopping' : process.ready === true ? 'ready' : process.ready === false ? 'not ready' : '–';
  showPairs($('facts'), [
    ['File', nonEmptyText(configuration.file) ?? '–'],
    ['Version', `${formatCount(configuration.version)}, loaded ${formatTime(configuration.loaded)}`],
    ['SHA-256', nonEmptyText(configuration.sha256) ?? '–'],
    ['Last reload', configuration.problem === null ? 'no problem' : nonEmptyText(configuration.problem) ? `failed: ${configuration.problem}` : '–'],
    ['Process', `${state}, pid ${isKnown(process.pid) ? process.pid : '–'}, version ${nonEmptyText(status.build?.version) ?? '–'}`],
    ['Needs an upgrade', upgrade],
    ['Traces', describeTraces(status.traces)],
    ['Running', `for ${formatDuration(process.uptime_seconds)}, since ${formatTime(process.started)}`],
  ]);
}
