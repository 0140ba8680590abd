// Recent trouble: the last requests that did not go well, asked for only while they are looked at. And who is refused.

const TROUBLE_INTERVAL = 5000, TYPING_PAUSE = 300, FEW_REQUESTS = 6, MOST_REQUESTS = 500;
const STATUS_PATTERN = /^[1-5](xx|\d\d)$/i;
const TROUBLE_LOOKS = new Map([
  ['failed', ['✕', 'failed', 'bad']],
  ['refused', ['▲', 'refused', 'warn']],
  ['retried', ['↻', 'retried', 'note']],
  ['slow', ['◑', 'slow', 'note']],
]);

let troubleList = null, troubleProblem = '', troubleLimit = FEW_REQUESTS, troubleRequestedAt = 0, troubleTurn = 0, isTroubleNear = false, typingTimer = null;

/** What is asked for; `null` if the filter makes no sense yet. */
function troubleQuery() {
  const client = $('trouble-client').value, status = $('trouble-status').value.trim(), id = $('trouble-id').value.trim();
  if (status && !STATUS_PATTERN.test(status)) return null;
  const query = new URLSearchParams({ limit: String(troubleLimit) });
  if (client) query.set('client', client.slice(1));
  if (status) query.set('status', status);
  if (id) query.set('id', id);
  return query;
}

async function loadTrouble() {
  const query = troubleQuery(), turn = ++troubleTurn;
  setText($('trouble-hint'), query ? '' : 'Status: one status such as 429, or a class such as 4xx or 5xx.');
  if (!query) return;
  troubleRequestedAt = Date.now();
  try {
    // The server decodes %20, but not +.
    const response = await fetch(`api/requests?${query.toString().replaceAll('+', '%20')}`, { headers: requestHeaders(), cache: 'no-store' });
    if (!response.ok) throw new Error(await errorMessageOf(response));
    const list = await response.json();
    if (turn !== troubleTurn) return;
    troubleList = list && typeof list === 'object' ? list : {};
    troubleProblem = '';
  } catch (problem) {
    if (turn !== troubleTurn) return;
    troubleProblem = `Not loaded: ${problem.message}`;
  }
  showRequests();
}

/** With each status that is shown, so never while the page is hidden: asks again if it is time and somebody looks. */
function showTrouble(status) {
  showRefusals(objectsIn(status.refusals), status);
  showClientChoice(status);
  if ((isTroubleNear || !troubleRequestedAt) && !staleReason && Date.now() - troubleRequestedAt >= TROUBLE_INTERVAL - 100) loadTrouble();
}

/** The clients that can be chosen. The value of each begins with `=`, since a client may have any name. */
function showClientChoice(status) {
  const select = $('trouble-client'), chosen = select.value;
  const names = [...objectsIn(status.clients).map(client => client.name), ...objectsIn(status.refusals).map(entry => entry.client), ...objectsIn(troubleList?.requests).map(request => request.client)];
  const values = ['', '=', ...[...new Set(names.filter(nonEmptyText))].sort((a, b) => a.localeCompare(b)).map(name => `=${name}`)];
  if (!values.includes(chosen)) values.push(chosen);
  const signature = JSON.stringify(values);
  // Not while it is open.
  if (select.shownChoice === signature || document.activeElement === select) return;
  select.shownChoice = signature;
  select.replaceChildren(...values.map(value => new Option(value === '' ? 'all' : value === '=' ? '(unknown)' : value.slice(1), value, false, value === chosen)));
}

function showRequests() {
  const requests = objectsIn(troubleList?.requests), { matching, kept } = troubleList ?? {};
  setText($('trouble-count'), !troubleList ? '' : matching === kept ? `${formatCount(kept)} kept` : `${formatCount(matching)} of ${formatCount(kept)} match`);
  updateList($('trouble-table'), requests, 'trouble-row', request => request.id, showRequest);
  setVisible($('trouble-table'), requests.length > 0);
  setVisible($('no-trouble'), requests.length === 0 || troubleProblem !== '');
  const noMatch = $('trouble-id').value.trim() ? 'No request with this id is kept here, where only those are that did not go well. aoai-lb find ID searches all records.' : 'No request matches the filter.';
  setText($('no-trouble'), troubleProblem || (kept > 0 ? noMatch : isKnown(kept) ? 'No request was refused, failed, retried or slow.' : '–'));
  const canShowMore = matching > requests.length && troubleLimit < MOST_REQUESTS;
  setVisible($('more-trouble'), canShowMore || troubleLimit > FEW_REQUESTS);
  setText($('more-trouble'), troubleLimit > FEW_REQUESTS ? `Show the last ${FEW_REQUESTS} only` : `Show all ${formatCount(Math.min(matching ?? 0, MOST_REQUESTS))}`);
}

function showRequest(f, request) {
  const attempts = Array.isArray(request.attempts) ? objectsIn(request.attempts).length + (isKnown(request.attempts_left_out) ? request.attempts_left_out : 0) : null;
  setText(f.time, formatTime(request.time));
  setBadge(f.kind, TROUBLE_LOOKS.get(request.trouble) ?? ['?', nonEmptyText(request.trouble) ?? 'unknown', 'unknown']);
  setText(f.status, isKnown(request.status) ? String(request.status) : '–');
  setText(f.client, nonEmptyText(request.client) ?? '–');
  setText(f.deployment, nonEmptyText(request.deployment) ?? '–');
  setText(f.attempts, formatCount(attempts));
  setText(f.duration, formatMillis(request.duration_ms));
  setText(f.cause, nonEmptyText(request.cause) ?? '–');
  setExpandable(f, 'trouble-details', `${formatTime(request.time)}, details`, sheet => showRequestDetails(sheet, request));
}

function showRequestDetails(sheet, request) {
  showRequestId(sheet, nonEmptyText(request.id));
  showPairs(sheet.facts, [
    ['Cause', nonEmptyText(request.cause) ?? '–'],
    ['Outcome', [request.outcome, request.refusal].filter(nonEmptyText).join(', ') || '–'],
    ['Client', [request.client, request.client_ip].filter(nonEmptyText).join(', ') || 'unknown'],
    ['Deployment', [request.deployment, request.operation].filter(nonEmptyText).join(', ') || '–'],
    ['Answered by', nonEmptyText(request.backend) ?? 'no backend'],
    ...[['WebSocket', request.socket_id], ["Client's id", request.client_request_id], ["Azure's id", request.apim_request_id], ['Trace', request.trace_id]].filter(([, id]) => nonEmptyText(id)),
    ['Began', formatTime(request.time)],
    ...(request.waited_ms > 0 ? [['Waited', `${formatMillis(request.waited_ms)} between attempts`]] : []),
    ...(request.queued_ms > 0 ? [['Queued', `${formatMillis(request.queued_ms)} in the queue`]] : []),
    ['First byte', isKnown(request.first_byte_ms) ? `after ${formatMillis(request.first_byte_ms)}` : 'none'],
    ['Ended', `after ${formatMillis(request.duration_ms)}`],
  ]);
  const attempts = objectsIn(request.attempts), leftOut = request.attempts_left_out > 0 ? `, after ${formatCount(request.attempts_left_out)} others` : '';
  setText(sheet.head, attempts.length ? `${pluralize(attempts.length, 'attempt')}${leftOut}` : 'No backend was asked');
  const whole = Math.max(request.duration_ms || 0, ...attempts.map(attempt => (attempt.start_ms ?? 0) + (attempt.ms ?? 0)), 1);
  let place = 0;
  updateList(sheet.attempts, attempts, 'attempt-item', () => place++, (f, attempt) => {
    const isAnswer = isKnown(attempt.status) && attempt.status < 400 && !nonEmptyText(attempt.error);
    setText(f.backend, nonEmptyText(attempt.backend) ?? 'unnamed');
    setText(f.result, [isKnown(attempt.status) ? String(attempt.status) : null, nonEmptyText(attempt.error)].filter(Boolean).join(' ') || '–');
    updateAttribute(f.span, 'data-level', isAnswer ? 'ok' : attempt.status === 429 ? 'warn' : 'bad');
    setBarFraction(f.span, (attempt.ms ?? 0) / whole, (attempt.start_ms ?? 0) / whole);
    setText(f.times, `began at ${formatMillis(attempt.start_ms)}, first byte ${isKnown(attempt.first_byte_ms) ? `after ${formatMillis(attempt.first_byte_ms)}` : 'none'}, took ${formatMillis(attempt.ms)}`);
  });
}

/** The id of a request, to look it up with. */
function showRequestId(sheet, id) {
  setText(sheet.id, id ?? '–');
  setVisible(sheet.copy, id !== null);
  updateAttribute(sheet.copy, 'aria-label', `Copy the request id ${id}`);
  sheet.copy.onclick = async () => {
    try {
      await navigator.clipboard.writeText(id);
      setText(sheet.copied, 'copied');
    } catch {
      getSelection().selectAllChildren(sheet.id);
      setText(sheet.copied, 'selected');
    }
    setTimeout(() => setText(sheet.copied, ''), 3000);
  };
}

const MOST_REFUSED = 5;

function showRefusals(refusals, status) {
  const totalOf = counts => {
    const known = [...objectsIn([counts.refused]).flatMap(Object.values), counts.failed].filter(isKnown);
    return known.length ? known.reduce((a, b) => a + b) : null;
  };
  updateList($('refusal-table'), firstOf(refusals, MOST_REFUSED, $('more-refusals'), renderAgain), 'refusal-row', entry => entry.client, (f, entry) => {
    const minute = entry.last_minute ?? {}, name = nonEmptyText(entry.client);
    setText(f.name, name ?? 'unknown clients');
    for (const key of ['401', '403', '404', '429', 'other']) {
      setNumber(f[key], minute.refused?.[key]);
      f[key].tip = `${formatCount(entry.refused?.[key])} since the start.`;
    }
    setNumber(f.failed, minute.failed);
    f.failed.tip = `${formatCount(entry.failed)} since the start.`;
    setNumber(f.total, totalOf(entry));
    updateAttribute(f.show, 'aria-label', `Show requests of ${name ?? 'unknown clients'}`);
    f.show.onclick = () => chooseClient(`=${name ?? ''}`);
  });
  setVisible($('refusal-table'), refusals.length > 0);
  setVisible($('no-refusals'), refusals.length === 0);
  setText($('no-refusals'), Array.isArray(status.refusals) ? 'Nobody since the start.' : '–');
  setText($('refusals-note'), refusals.length ? 'in the last minute' : '');
}

function chooseClient(value) {
  const select = $('trouble-client');
  if (![...select.options].some(option => option.value === value)) select.append(new Option(value.slice(1) || '(unknown)', value));
  select.value = value;
  $('trouble').scrollIntoView({ block: 'nearest' });
  select.focus({ preventScroll: true });
  loadTrouble();
}

$('trouble-filter').addEventListener('submit', event => {
  event.preventDefault();
  loadTrouble();
});
$('trouble-filter').addEventListener('reset', () => setTimeout(loadTrouble));
$('trouble-client').addEventListener('change', loadTrouble);
for (const id of ['trouble-status', 'trouble-id']) $(id).addEventListener('input', () => {
  clearTimeout(typingTimer);
  typingTimer = setTimeout(loadTrouble, TYPING_PAUSE);
});
$('more-trouble').addEventListener('click', () => {
  troubleLimit = troubleLimit > FEW_REQUESTS ? FEW_REQUESTS : MOST_REQUESTS;
  loadTrouble();
});
new IntersectionObserver(entries => {
  isTroubleNear = entries.at(-1).isIntersecting;
  if (latest && isTroubleNear) showTrouble(latest);
}, { rootMargin: '300px' }).observe($('trouble'));
