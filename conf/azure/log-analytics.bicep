// Creates what the Log Analytics sink of aoai-lb needs: a table, a data collection endpoint and rule, and the role
// to write. Its outputs are the three values of record.log_analytics.

@description('Region of the workspace. Endpoint and rule must be in the same region.')
param location string = resourceGroup().location

@description('Object id of the writer: the managed identity of the VM, or the service principal of an app registration (not its application id).')
param principalId string

@description('Resource id of an existing workspace, in any resource group or subscription of the tenant. If empty, a workspace is created.')
param workspaceId string = ''

@description('Name of the workspace that is created when workspaceId is empty. An existing workspace of that name in this resource group would be changed.')
@minLength(4)
@maxLength(63)
param workspaceName string = 'aoai-lb'

@description('Name of the data collection endpoint and rule.')
@minLength(3)
@maxLength(44)
param name string = 'aoai-lb'

@description('Days for which queries can read the rows.')
@minValue(4)
@maxValue(730)
param retentionInDays int = 90

@description('Days until the rows are deleted. After retentionInDays only search jobs can read them. Up to 730, or 1095, 1460, 1826, 2191, 2556, 2922, 3288, 3653, 4018, 4383.')
@minValue(4)
@maxValue(4383)
param totalRetentionInDays int = retentionInDays

var tableName = 'AoaiExchanges_CL'
var streamName = 'Custom-AoaiExchanges'

// The fields of the exchange record, which are the columns of both the stream and the table.
//
// Azure allows names of a letter and up to 44 letters, digits and underscores, except _ResourceId, id,
// _SubscriptionId, TenantId, Type, UniqueId and Title. `time` is allowed, but is a keyword of KQL, where it must
// be written ["time"].
var fields = [
  { name: 'time', type: 'datetime' }
  { name: 'request_id', type: 'string' }
  { name: 'client_request_id', type: 'string' }
  { name: 'trace_id', type: 'string' }
  { name: 'socket_id', type: 'string' }
  { name: 'client', type: 'string' }
  { name: 'class', type: 'string' }
  { name: 'client_ip', type: 'string' }
  { name: 'peer_ip', type: 'string' }
  { name: 'user_agent', type: 'string' }
  { name: 'method', type: 'string' }
  { name: 'path', type: 'string' }
  { name: 'operation', type: 'string' }
  { name: 'api', type: 'string' }
  { name: 'api_version', type: 'string' }
  { name: 'deployment', type: 'string' }
  { name: 'stream', type: 'boolean' }
  { name: 'status', type: 'int' }
  { name: 'outcome', type: 'string' }
  { name: 'refusal', type: 'string' }
  { name: 'limited_by', type: 'string' }
  { name: 'reserved_tokens', type: 'long' }
  { name: 'backend', type: 'string' }
  { name: 'upstream_deployment', type: 'string' }
  { name: 'region', type: 'string' }
  { name: 'model', type: 'string' }
  { name: 'service_tier', type: 'string' }
  { name: 'affinity', type: 'dynamic' }
  { name: 'cache', type: 'dynamic' }
  { name: 'attempts', type: 'dynamic' }
  { name: 'duration_ms', type: 'long' }
  { name: 'waited_ms', type: 'long' }
  { name: 'queued_ms', type: 'long' }
  { name: 'first_byte_ms', type: 'long' }
  { name: 'request_bytes', type: 'long' }
  { name: 'response_bytes', type: 'long' }
  { name: 'input_tokens', type: 'long' }
  { name: 'output_tokens', type: 'long' }
  { name: 'cached_tokens', type: 'long' }
  { name: 'cache_write_tokens', type: 'long' }
  { name: 'reasoning_tokens', type: 'long' }
  { name: 'total_tokens', type: 'long' }
  { name: 'input_audio_tokens', type: 'long' }
  { name: 'output_audio_tokens', type: 'long' }
  { name: 'cached_audio_tokens', type: 'long' }
  { name: 'audio_seconds', type: 'real' }
  { name: 'usage_source', type: 'string' }
  { name: 'usage_missing', type: 'string' }
  { name: 'cost', type: 'real' }
  { name: 'spilled', type: 'string' }
  { name: 'finish_reason', type: 'string' }
  { name: 'apim_request_id', type: 'string' }
  { name: 'prompt', type: 'string' }
  { name: 'completion', type: 'string' }
  { name: 'content_cut', type: 'boolean' }
]

resource newWorkspace 'Microsoft.OperationalInsights/workspaces@2022-10-01' = if (empty(workspaceId)) {
  name: workspaceName
  location: location
  properties: {
    sku: {
      name: 'PerGB2018'
    }
    retentionInDays: 30
  }
}

var workspace = empty(workspaceId) ? resourceId('Microsoft.OperationalInsights/workspaces', workspaceName) : workspaceId

// A module, since the workspace may be in another resource group than this deployment.
module table 'table.bicep' = {
  name: '${name}-table'
  scope: resourceGroup(split(workspace, '/')[2], split(workspace, '/')[4])
  params: {
    workspaceName: last(split(workspace, '/'))
    tableName: tableName
    columns: concat([{ name: 'TimeGenerated', type: 'dateTime' }], fields)
    retentionInDays: retentionInDays
    totalRetentionInDays: totalRetentionInDays
  }
  dependsOn: [
    newWorkspace
  ]
}

resource collectionEndpoint 'Microsoft.Insights/dataCollectionEndpoints@2022-06-01' = {
  name: name
  location: location
  properties: {
    networkAcls: {
      publicNetworkAccess: 'Enabled'
    }
  }
}

resource collectionRule 'Microsoft.Insights/dataCollectionRules@2022-06-01' = {
  name: name
  location: location
  properties: {
    description: 'Exchange records of aoai-lb'
    dataCollectionEndpointId: collectionEndpoint.id
    streamDeclarations: {
      '${streamName}': {
        columns: fields
      }
    }
    destinations: {
      logAnalytics: [
        {
          name: 'workspace'
          workspaceResourceId: workspace
        }
      ]
    }
    dataFlows: [
      {
        streams: [
          streamName
        ]
        destinations: [
          'workspace'
        ]
        transformKql: 'source | extend TimeGenerated = todatetime(["time"])'
        outputStream: 'Custom-${tableName}'
      }
    ]
  }
  dependsOn: [
    table
  ]
}

var monitoringMetricsPublisher = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '3913510d-42f4-4e42-8a64-420c390055eb')

resource writer 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(collectionRule.id, principalId, monitoringMetricsPublisher)
  scope: collectionRule
  properties: {
    roleDefinitionId: monitoringMetricsPublisher
    principalId: principalId
    principalType: 'ServicePrincipal'
  }
}

@description('record.log_analytics.endpoint')
output endpoint string = collectionEndpoint.properties.logsIngestion.endpoint

@description('record.log_analytics.rule')
output rule string = collectionRule.properties.immutableId

@description('record.log_analytics.stream')
output stream string = streamName
