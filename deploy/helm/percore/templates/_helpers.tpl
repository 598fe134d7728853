{{/* The chart's name. In a parent chart it is the alias of the dependency, so that two aliases share no name and no pod. */}}
{{- define "percore.name" -}}
{{- .Values.nameOverride | default .Chart.Name | lower | replace "_" "-" | trimAll "-" -}}
{{- end }}

{{- define "percore.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end }}

{{/*
The release's full name, at most 44 characters, which leaves room for suffixes. Release names may have dots, begin with a digit and
be 53 characters long, but names of Services may not. Such a name is changed and gets a hash, so that two releases never have the
same name. A name that ends like one of the suffixes gets a hash too. An alias is always part of the name, even
if the release's name contains it. Otherwise two aliases that are both in the release's name would get the same name.
*/}}
{{- define "percore.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $chart := include "percore.name" . -}}
{{- $name := .Release.Name | replace "." "-" -}}
{{- if or (ne $chart "percore") (not (contains $chart $name)) -}}{{- $name = printf "%s-%s" $name $chart -}}{{- end -}}
{{- if not (regexMatch "^[a-z]" $name) -}}{{- $name = printf "percore-%s" $name -}}{{- end -}}
{{- if or (contains "." .Release.Name) (gt (len $name) 44) (regexMatch "-(gateway|inference|autoscaling|test)$" $name) -}}
{{- $name = printf "%s-%s" ($name | trunc 37 | trimSuffix "-") (printf "%s %s" .Release.Name $chart | sha256sum | trunc 6) -}}
{{- end -}}
{{- $name -}}
{{- end -}}
{{- end }}

{{- define "percore.selector" -}}
app.kubernetes.io/name: {{ include "percore.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The same as a label selector, such as `a=b,c=d`. */}}
{{- define "percore.selectorText" -}}
{{- $pairs := list -}}
{{- range $label, $value := include "percore.selector" . | fromYaml -}}
{{- $pairs = append $pairs (printf "%s=%s" $label $value) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end }}

{{/*
Labels of an object: the chart's, then `commonLabels`, then `.more`. The later one wins, but nothing changes the labels by which
pods are selected; the chart refuses values that would.
*/}}
{{- define "percore.labels" -}}
{{- $own := dict "app.kubernetes.io/version" .root.Chart.AppVersion "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- toYaml (mergeOverwrite $own (.root.Values.commonLabels | default dict) (.more | default dict) (include "percore.selector" . | fromYaml)) -}}
{{- end }}

{{/* A tag may be a number, because `--set image.tag=1` gives one. */}}
{{- define "percore.image" -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ include "percore.quantity" .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* A quantity as Kubernetes takes it. Helm reads the numbers of values files as floats, which it would print as 2.147483648e+09. */}}
{{- define "percore.quantity" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- int64 . -}}
{{- else if not (kindIs "invalid" .) -}}
{{- toString . -}}
{{- end -}}
{{- end }}

{{/* The cores of a call, as a whole number; 2000m is one too. */}}
{{- define "percore.cores" -}}
{{- $text := include "percore.quantity" .Values.cpu -}}
{{- $cores := 0 -}}
{{- if regexMatch "^[1-9][0-9]{0,3}([.]0+)?$" $text -}}{{- $cores = int (regexFind "^[0-9]+" $text) -}}{{- end -}}
{{- if regexMatch "^[1-9][0-9]{0,3}000m$" $text -}}{{- $cores = int (trimSuffix "000m" $text) -}}{{- end -}}
{{- if or (lt $cores 1) (gt $cores 1024) -}}
{{- fail (printf "cpu=%s: must be a whole number of CPUs from 1 to 1024, because a call computes on whole cores" $text) -}}
{{- end -}}
{{- $cores -}}
{{- end }}

{{/* A number of bytes and a quarter more, rounded up. */}}
{{- define "percore.aQuarterMore" -}}
{{- div (add (mul 5 (int64 .)) 3) 4 -}}
{{- end }}

{{/* A number of bytes in MiB, rounded up. */}}
{{- define "percore.mebibytes" -}}
{{- div (add (int64 .) 1048575) 1048576 -}}
{{- end }}

{{/* CPU, memory and disk of the worker. The init container that runs before the worker gets the same. */}}
{{- define "percore.workerResources" -}}
requests:
  cpu: {{ include "percore.cores" . | quote }}
  memory: {{ include "percore.quantity" .Values.memory | quote }}
  {{- /* Models that were fetched lie on the disk of the node as long as the pod lives. */}}
  ephemeral-storage: {{ ternary (include "percore.modelVolumeBytes" .) (include "percore.quantity" .Values.ephemeralStorage.request) (ne .Values.model.uri "") | quote }}
limits:
  cpu: {{ include "percore.cores" . | quote }}
  memory: {{ include "percore.quantity" .Values.memory | quote }}
{{- end }}

{{/* A map without the keys whose value is null. Helm itself drops such keys in most cases, but not in a parent chart's values. */}}
{{- define "percore.withoutNulls" -}}
{{- $kept := dict -}}
{{- range $key, $value := . | default dict -}}
{{- if not (kindIs "invalid" $value) -}}{{- $_ := set $kept $key $value -}}{{- end -}}
{{- end -}}
{{- toYaml $kept -}}
{{- end }}

{{/* What Pod Security's `restricted` asks for, of a pod and of a container. */}}
{{- define "percore.podSecurity" -}}
{{- include "percore.withoutNulls" .Values.podSecurityContext -}}
{{- end }}

{{- define "percore.containerSecurity" -}}
{{- include "percore.withoutNulls" .Values.securityContext -}}
{{- end }}

{{/* How long a pod may need for one call. Gunicorn's own timeout is as long. */}}
{{- define "percore.callSeconds" -}}
{{- add .Values.timeouts.run .Values.timeouts.body .Values.timeouts.answer 30 -}}
{{- end }}

{{/* Settings that mean the same in a pod and in the gateway. */}}
{{- define "percore.callSettings" -}}
- name: PERCORE_LOAD_TIMEOUT
  value: {{ int64 .Values.timeouts.load | quote }}
- name: PERCORE_BODY_TIMEOUT
  value: {{ int64 .Values.timeouts.body | quote }}
- name: PERCORE_QUEUE_TIMEOUT
  value: {{ int64 .Values.timeouts.queue | quote }}
- name: PERCORE_RUN_TIMEOUT
  value: {{ int64 .Values.timeouts.run | quote }}
- name: PERCORE_ANSWER_TIMEOUT
  value: {{ int64 .Values.timeouts.answer | quote }}
- name: PERCORE_SHUTDOWN_TIMEOUT
  value: {{ min (include "percore.callSeconds" . | int64) 604800 | quote }}
- name: PERCORE_MAX_BODY_BYTES
  value: {{ int64 .Values.maxBodyBytes | quote }}
- name: PERCORE_QUEUE_LENGTH
  value: {{ int64 .Values.queue.length | quote }}
{{- with .Values.app }}
- name: PERCORE_APP
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{/* How much is logged: in the gateway `gateway.logLevel`, if there is one. */}}
{{- define "percore.logLevel" -}}
- name: PERCORE_LOG_LEVEL
  value: {{ . }}
{{- end }}

{{/* The claim of the volume with stored calls. Empty: there is none, because they are in PostgreSQL, or not stored. */}}
{{- define "percore.callsVolume" -}}
{{- if and .Values.calls.enabled (not .Values.calls.database.existingSecret) -}}
{{- .Values.calls.persistence.existingClaim | default (printf "%s-gateway-calls" (include "percore.fullname" .)) -}}
{{- end -}}
{{- end }}

{{/*
The size of that volume: 1.25 times the bytes that the gateway may store, because SQLite gives pages back late, and 1 GiB, because
512 MiB must stay free.
*/}}
{{- define "percore.callsVolumeSize" -}}
{{- $bytes := add (include "percore.aQuarterMore" .Values.calls.bytes) 1073741824 -}}
{{- include "percore.quantity" .Values.calls.persistence.size | default (printf "%sMi" (include "percore.mebibytes" $bytes)) -}}
{{- end }}

{{/* Settings of stored calls. */}}
{{- define "percore.storedCallSettings" -}}
{{- with .Values.calls -}}
{{- if .database.existingSecret }}
- name: PERCORE_GATEWAY_CALLS_DATABASE
  valueFrom:
    secretKeyRef:
      name: {{ .database.existingSecret }}
      key: {{ .database.key }}
{{- else }}
- name: PERCORE_GATEWAY_CALLS_DIR
  value: /var/lib/percore/calls
{{- end }}
- name: PERCORE_GATEWAY_CALLS_RETENTION
  value: {{ int64 .retentionSeconds | quote }}
- name: PERCORE_GATEWAY_CALLS_LIMIT
  value: {{ int64 .limit | quote }}
- name: PERCORE_GATEWAY_CALLS_BYTES
  value: {{ int64 .bytes | quote }}
- name: PERCORE_GATEWAY_CALLS_MAX_RUNS
  value: {{ int64 .maxRuns | quote }}
{{- if .webhooks.hosts }}
- name: PERCORE_GATEWAY_WEBHOOK_HOSTS
  value: {{ join "," .webhooks.hosts | quote }}
- name: PERCORE_GATEWAY_WEBHOOK_SECRETS
  valueFrom:
    secretKeyRef:
      name: {{ .webhooks.existingSecret }}
      key: {{ .webhooks.key }}
- name: PERCORE_GATEWAY_WEBHOOK_TIMEOUT
  value: {{ int64 .webhooks.timeoutSeconds | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The gateway's memory in MiB: 320 for the process, what it may hold of bodies, and 24 KiB for each queued call. Stored calls: 64 MiB for
the libraries and the database's caches, and 8 KiB for each unfinished call.
*/}}
{{- define "percore.gatewayMemory" -}}
{{- $stored := ternary (add 67108864 (mul 8192 (int64 .Values.calls.limit))) 0 .Values.calls.enabled -}}
{{- $bytes := add (int64 .Values.gateway.spool.memoryBytes) (mul 24576 (int64 .Values.queue.length)) $stored -}}
{{- include "percore.quantity" .Values.gateway.memory | default (printf "%dMi" (add 320 (include "percore.mebibytes" $bytes))) -}}
{{- end }}

{{/* Size of the spool's volume: a quarter more than the gateway writes, so that the kubelet does not evict a gateway for it. */}}
{{- define "percore.spoolVolumeBytes" -}}
{{- include "percore.aQuarterMore" .Values.gateway.spool.bytes -}}
{{- end }}

{{/* The call that NOTES and the test make. None for a handler or an app of the user's own, unless its path is given. */}}
{{- define "percore.examplePath" -}}
{{- if not (and (or .Values.handler .Values.app) (eq .Values.exampleCall.path "/v1/models/digits:predict")) -}}{{ .Values.exampleCall.path }}{{- end -}}
{{- end }}

{{/* The metric that autoscaling reads. */}}
{{- define "percore.metric" -}}
{{- ternary "percore_desired_replicas" "percore_in_flight_requests" (gt (int .Values.autoscaling.spareReplicas) 0) -}}
{{- end }}

{{/* How long a pod may take until its models are loaded: with `model.uri` the init container fetches them first, with the same timeout. */}}
{{- define "percore.loadSeconds" -}}
{{- mul .Values.timeouts.load (ternary 2 1 (ne .Values.model.uri "")) -}}
{{- end }}

{{/* How long `helm test` may take: the models are loaded, and one call is computed. */}}
{{- define "percore.testSeconds" -}}
{{- add (include "percore.loadSeconds" .) .Values.timeouts.run 120 -}}
{{- end }}

{{/* Namespace of the objects that Prometheus and Grafana read. */}}
{{- define "percore.monitoringNamespace" -}}
{{- .Values.monitoring.namespace | default (include "percore.namespace" .) -}}
{{- end }}

{{/* Address of the runbook: in the project's repository, as it is for this version. */}}
{{- define "percore.runbook" -}}
{{- .Values.monitoring.rules.runbookUrl | default (printf "%s/blob/v%s/docs/runbook.md" .Chart.Home .Chart.AppVersion) -}}
{{- end }}

{{/*
The timeout that everything in front of the gateway needs: body, queue, run and answer, and a minute more, so that percore's own
timeouts end a call first.
*/}}
{{- define "percore.timeoutInFrontSeconds" -}}
{{- add .Values.timeouts.queue .Values.timeouts.run .Values.timeouts.body .Values.timeouts.answer 60 -}}
{{- end }}

{{/* The same, as a duration of the Gateway API. The numbers in such a duration have at most five digits. */}}
{{- define "percore.timeoutInFrontDuration" -}}
{{- $seconds := include "percore.timeoutInFrontSeconds" . | int64 -}}
{{- printf "%dh%dm%ds" (div $seconds 3600) (div (mod $seconds 3600) 60) (mod $seconds 60) -}}
{{- end }}

{{/* What `ingress.controller` needs, with the numbers of this release; without a controller nothing. */}}
{{- define "percore.controller" -}}
{{- $found := get (.Files.Get "ingress-controllers.yaml" | fromYaml) .Values.ingress.controller -}}
{{- if and .Values.ingress.enabled $found -}}
{{- $call := min (include "percore.timeoutInFrontSeconds" . | int64) ($found.most | default 2147483 | int64) -}}
{{- $text := toJson (pick $found "ingress" "service" "idle" "most" "title") | replace "CALL" (toString $call) -}}
{{- $text | replace "BODY" (toString (int64 .Values.maxBodyBytes)) | replace "NAME" (include "percore.fullname" .) -}}
{{- else -}}
{{- toJson (dict "ingress" dict "service" dict) -}}
{{- end -}}
{{- end }}

{{/* DNS, in a NetworkPolicy. */}}
{{- define "percore.dnsPorts" -}}
- port: 53
  protocol: UDP
- port: 53
  protocol: TCP
{{- end }}

{{/* All alerts. Those on the autoscaler are part of them if `.autoscaler` says so. */}}
{{- define "percore.alerts" -}}
{{- $groups := list "burn" "autoscaler" "pod" "gateway" "storedCall" -}}
{{- if not .autoscaler -}}{{- $groups = without $groups "autoscaler" -}}{{- end -}}
{{- $alerts := list -}}
{{- range $group := $groups -}}
{{- $alerts = concat $alerts (include (printf "percore.%sAlerts" $group) $.root | fromYamlArray) -}}
{{- end -}}
{{- toYaml $alerts -}}
{{- end }}
