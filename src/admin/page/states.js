// The states of the service, of backends and of their parts are the server's. Here is how they look.

// For each state of the service: sign, level and what it means.
const SERVICE_LOOKS = new Map([
  ['healthy', ['✓', 'ok', '']],
  ['spilling', ['⇢', 'note', 'provisioned capacity is full and others serve, which is normal']],
  ['degraded', ['◑', 'warn', 'something is not healthy']],
  ['failing', ['▲', 'bad', 'clients are refused or failed because of backends']],
]);
// For each state of a backend: sign and level, the worst first.
const STATE_LOOKS = new Map([
  ['credential', ['▲', 'bad']],
  ['unresolvable', ['▲', 'bad']],
  ['stalled', ['✕', 'bad']],
  ['breaker_open', ['✕', 'bad']],
  ['failing', ['✕', 'bad']],
  ['absent', ['○', 'bad']],
  ['permission', ['▲', 'bad']],
  ['cooling', ['◑', 'warn']],
  ['drained', ['■', 'note']],
  ['disabled', ['□', 'note']],
  ['healthy', ['✓', 'ok']],
]);
const LEVEL_SIGNS = { ok: '✓', note: '■', warn: '◑', bad: '▲', unknown: '?' };

/** Sign, word and level of a state. That a provisioned backend is full while others serve is nothing to warn of. */
function lookOf(state, isSpilling = false) {
  const [sign, level] = STATE_LOOKS.get(state) ?? ['?', nonEmptyText(state) ? 'warn' : 'unknown'];
  return [sign, nonEmptyText(state) ?? 'unknown', isSpilling && level === 'warn' ? 'note' : level];
}

/** The names of the backends that are full while others serve, as the server judges it. */
const spillingIn = status => new Set(objectsIn(status.service?.problems).filter(problem => problem.state === 'spilling').map(problem => problem.subject));

const serviceLookOf = state => SERVICE_LOOKS.get(state) ?? ['?', 'unknown', ''];

/** The unavailable parts of a backend, with state and time left. */
function unavailablePartsOf(backend) {
  const parts = new Map();
  for (const part of objectsIn(backend.resting)) {
    const tier = nonEmptyText(part.service_tier);
    const whole = nonEmptyText(part.deployment) ?? nonEmptyText(part.operation) ?? 'something';
    const name = tier ? `${whole}: ${tier} requests` : whole;
    parts.set(name, { name, state: nonEmptyText(part.reason), until_ms: part.until_ms });
  }
  for (const part of objectsIn(backend.deployments)) {
    const state = nonEmptyText(part.state);
    if (state && state !== 'healthy') parts.set(nameOf(part), { name: nameOf(part), state, until_ms: part.until_ms });
  }
  return [...parts.values()];
}

const isHealthy = backend => backend.state === 'healthy' && unavailablePartsOf(backend).length === 0;

/** The lower, the worse. What is partly unavailable comes before what the operator wants so. */
function rankOf(backend) {
  const states = [...STATE_LOOKS.keys()], at = states.indexOf(backend.state);
  if (at < 0) return -1;
  return backend.state === 'healthy' && !isHealthy(backend) ? states.indexOf('cooling') + 0.5 : at;
}

function poolName(pool) {
  if (pool.kind === 'home') return 'Calls that name no deployment';
  if (pool.kind === 'unlisted') return 'Deployments that no backend lists';
  return nonEmptyText(pool.deployment) ?? 'unnamed';
}

const membersOf = pool => objectsIn(pool.tiers).flatMap(tier => objectsIn(tier.members).map(member => ({ ...member, tier: tier.tier })));

/** How many members of a pool are healthy, and the tier that is in use: sign, text and level. */
function poolLookOf(pool, spilling) {
  const tiers = objectsIn(pool.tiers), members = membersOf(pool);
  const healthy = members.filter(member => member.state === 'healthy').length;
  const look = (level, text) => [LEVEL_SIGNS[level], text, level];
  if (!members.some(member => nonEmptyText(member.state))) return look('unknown', 'unknown');
  if (healthy === 0) return look('bad', `none of ${members.length} healthy`);
  if (healthy === members.length) return look('ok', `${healthy} healthy`);
  const first = tiers.findIndex(tier => objectsIn(tier.members).some(member => member.state === 'healthy'));
  const text = `${healthy} of ${members.length} healthy`;
  const isNormal = members.every(member => member.state === 'healthy' || spilling.has(member.backend));
  return first > 0 ? look(isNormal ? 'note' : 'warn', `${text}, tier ${formatCount(tiers[first].tier)}`) : look('note', text);
}
