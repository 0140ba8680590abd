// The instances that act as one, and whether their server answers.

const MOST_INSTANCES = 10;

function showShared(status) {
  const shared = status.shared && typeof status.shared === 'object' ? status.shared : null;
  // An instance that is alone has none.
  setVisible($('instances'), shared !== null);
  if (!shared) return;
  const instances = objectsIn(shared.instances);
  updateList($('instance-table'), firstOf(instances, MOST_INSTANCES, $('more-instances'), renderAgain), 'instance-row', instance => instance.id, (f, instance) => {
    setText(f.name, `${nonEmptyText(instance.name) ?? nonEmptyText(instance.id) ?? 'unnamed'}${instance.is_self === true ? ' (this one)' : ''}`);
    setText(f.version, nonEmptyText(instance.version) ?? '–');
    setText(f.since, nonEmptyText(instance.since) ? formatTime(instance.since) : '–');
    setNumber(f.rate, instance.requests_per_second);
  });
  setVisible($('instance-table'), instances.length > 0);
  const since = nonEmptyText(shared.since) ? ` since ${formatTime(shared.since)}` : '';
  const probes = objectsIn(shared.probes).slice(0, MOST_INSTANCES).map(probe => ` ${nonEmptyText(probe.instance) ?? 'unnamed'} probes ${[probe.backend, probe.name || probe.part].map(nonEmptyText).filter(Boolean).join(' / ')}.`).join('');
  const partly = nonEmptyText(shared.problem) ? `▲ Connected in part${since}: ${shared.problem}.` : `Connected${since}.`;
  setText($('instances-note'), shared.up === true ? `${partly}${probes}` : nonEmptyText(shared.problem) ? `▲ Not connected${since}: ${shared.problem}. ${pluralize(shared.last_seen_count, 'instance')} before.` : 'Connecting …');
}
