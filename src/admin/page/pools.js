// Pools: of each only what is not healthy. The queue, if there is one: who waits for what. Clients: how much they use.

const MOST_POOLS = 6;

function showPools(pools, spilling) {
  const looks = new Map(pools.map(pool => [pool, poolLookOf(pool, spilling)])), order = ['bad', 'warn', 'unknown', 'note', 'ok'];
  const isException = pool => looks.get(pool)[2] !== 'ok';
  const matching = pools.filter(pool => matchesFilters(isException(pool), poolName(pool), ...membersOf(pool).map(member => member.backend)));
  matching.sort((a, b) => order.indexOf(looks.get(a)[2]) - order.indexOf(looks.get(b)[2]));
  const shown = firstOf(matching, MOST_POOLS, $('more-pools'), renderAgain);
  updateList($('pool-rows'), shown, 'pool-row', pool => `${pool.kind} ${pool.deployment}`, (f, pool) => {
    const look = looks.get(pool), members = membersOf(pool);
    f.root.toggleAttribute('data-exception', isException(pool));
    setText(f.name, poolName(pool));
    setBadge(f.state, look);
    const exceptions = members.filter(member => member.state !== 'healthy');
    setVisible(f.members, exceptions.length > 0);
    updateList(f.members, exceptions, 'member-item', member => `${member.tier} ${member.backend} ${member.upstream}`, (g, member) => {
      const more = [];
      if (nonEmptyText(member.upstream) && member.upstream !== pool.deployment) more.push(`as ${member.upstream}`);
      if (isKnown(member.weight) && member.weight !== 1) more.push(`×${formatCount(member.weight)}`);
      setText(g.tier, `Tier ${formatCount(member.tier)}`);
      setBadge(g.state, lookOf(nonEmptyText(member.state), spilling.has(member.backend)));
      setText(g.name, nonEmptyText(member.backend) ?? 'unnamed');
      setText(g.more, more.join(' '));
      setCountdown(g.left, look[2] === 'bad' ? member.until_ms : null);
    });
  });
  showEmpty($('no-pools'), shown.length, pools.length, 'pool');
}

const MOST_QUEUE_LINES = 5;
const CLASSES = ['interactive', 'standard', 'batch'];

/** The queue; null if requests do not wait. */
const queueOf = status => status.queue && typeof status.queue === 'object' ? status.queue : null;

/** How many requests wait in the queue; null if that is not known. */
const waitingIn = queue => sum(CLASSES.map(name => queue.waiting?.[name]), 0, undefined);

function showQueue(queue) {
  setVisible($('queue-note'), queue !== null);
  if (queue === null) return setText($('queue-note'), '');
  const bounds = `At most ${pluralize(queue.requests, 'request')} may wait, each for at most ${formatMillis(queue.wait_ms)}.`;
  const waiting = waitingIn(queue);
  if (!(waiting > 0)) return setText($('queue-note'), `Queue: ${isKnown(waiting) ? 'no request waits' : '–'}. ${bounds}`);
  const classes = CLASSES.filter(name => queue.waiting[name] > 0).map(name => `${formatCount(queue.waiting[name])} ${name}`);
  const lines = objectsIn(queue.lines), more = lines.length - MOST_QUEUE_LINES;
  const shown = lines.slice(0, MOST_QUEUE_LINES).map(line => `${nonEmptyText(line.deployment) ?? 'calls without a deployment'} ${formatCount(line.waiting)}`);
  if (more > 0) shown.push(`and ${pluralize(more, 'more deployment')}`);
  setText($('queue-note'), `Queue: ${pluralize(waiting, 'request')} ${waiting === 1 ? 'waits' : 'wait'} for a free backend (${classes.join(', ')}): ${shown.join(', ') || '–'}. ${bounds}`);
}

const MOST_CACHES = 5;
const MOST_CACHE_MEMBERS = 8;

/** How much of their input the deployments read from prompt caches that are balanced by them. */
function showCaches(pools) {
  const balanced = pools.filter(pool => pool.balance === 'prompt_cache' && nonEmptyText(pool.deployment));
  setVisible($('cache-note'), balanced.length > 0);
  const describe = pool => {
    const members = membersOf(pool).filter(member => isKnown(member.cached_share));
    const shown = members.slice(0, MOST_CACHE_MEMBERS).map(member => `${nonEmptyText(member.backend) ?? 'unnamed'} ${formatPercent(member.cached_share)}`);
    if (members.length > MOST_CACHE_MEMBERS) shown.push(`${members.length - MOST_CACHE_MEMBERS} more`);
    return `${pool.deployment} ${formatPercent(pool.cached_share)}${shown.length > 0 ? ` (${shown.join(', ')})` : ''}`;
  };
  const shown = balanced.slice(0, MOST_CACHES).map(describe), more = balanced.length - MOST_CACHES;
  if (more > 0) shown.push(`and ${pluralize(more, 'more deployment')}`);
  setText($('cache-note'), balanced.length > 0 ? `Input read from prompt caches in the last 15 minutes: ${shown.join('; ')}.` : '');
}

const MOST_CLIENTS = 5;

function showClients(clients) {
  const tokens = usage => isKnown(usage?.input_tokens) || isKnown(usage?.output_tokens) ? (usage.input_tokens ?? 0) + (usage.output_tokens ?? 0) : -1;
  const by = {
    tokens: (a, b) => tokens(b) - tokens(a),
    recent: (a, b) => tokens(b.last_minute) - tokens(a.last_minute),
    requests: (a, b) => (b.last_minute?.requests ?? -1) - (a.last_minute?.requests ?? -1),
    name: () => 0,
  }[$('sort').value];
  const matching = clients.filter(client => matchesFilters(true, client.name));
  matching.sort((a, b) => by(a, b) || nameOf(a).localeCompare(nameOf(b)));
  const shown = firstOf(matching, MOST_CLIENTS, $('more-clients'), renderAgain);
  updateList($('client-rows'), shown, 'client-row', nameOf, (f, client) => {
    const minute = client.last_minute ?? {};
    setText(f.name, nameOf(client));
    setNumber(f.r1, minute.requests);
    setNumber(f.i1, minute.input_tokens);
    setNumber(f.o1, minute.output_tokens);
    setNumber(f.r, client.requests);
    setNumber(f.i, client.input_tokens);
    setNumber(f.o, client.output_tokens);
  });
  showEmpty($('no-clients'), shown.length, clients.length, 'client');
}
