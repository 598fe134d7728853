{{/*
The release's full name, at most 44 characters, which leaves room for suffixes. Release names may have dots, begin with a digit
and be 53 characters long, but names of Services may not. Such a name is changed and gets a hash, so that two releases never have one
name. A name that could be that of another release with a suffix gets a hash too.
*/}}
{{- define "percore.fullname" -}}
{{- $name := .Release.Name | replace "." "-" -}}
{{- if not (contains "percore" $name) -}}{{- $name = printf "%s-percore" $name -}}{{- end -}}
{{- if not (regexMatch "^[a-z]" $name) -}}{{- $name = printf "percore-%s" $name -}}{{- end -}}
{{- if or (contains "." .Release.Name) (gt (len $name) 44) (regexMatch "-(gateway|inference|autoscaling|test)$" $name) -}}
{{- $name = printf "%s-%s" ($name | trunc 37 | trimSuffix "-") (.Release.Name | sha256sum | trunc 6) -}}
{{- end -}}
{{- $name -}}
{{- end }}

{{- define "percore.selector" -}}
app.kubernetes.io/name: percore
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

{{- define "percore.labels" -}}
{{ include "percore.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "percore.image" -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What Pod Security's `restricted` asks for, of a pod and of a container. */}}
{{- define "percore.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "percore.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
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
{{- end }}

{{/*
The gateway's memory in MiB: 320 for the process, what it may hold of bodies, and 24 KiB for each queued call.
*/}}
{{- define "percore.gatewayMemory" -}}
{{- $bytes := add (int64 .Values.gateway.spool.memoryBytes) (mul 24576 (int64 .Values.queue.length)) -}}
{{- .Values.gateway.memory | default (printf "%dMi" (add 320 (div (add $bytes 1048575) 1048576))) -}}
{{- end }}

{{/* Size of the spool's volume: a quarter more than the gateway writes, so that the kubelet does not evict a gateway for it. */}}
{{- define "percore.spoolVolumeBytes" -}}
{{- div (add (mul 5 (int64 .Values.gateway.spool.bytes)) 3) 4 -}}
{{- end }}

{{/* The call that NOTES and the test make. None for a handler of the user's own, unless its path is given. */}}
{{- define "percore.examplePath" -}}
{{- if not (and .Values.handler (eq .Values.example.path "/v1/models/digits:predict")) -}}{{ .Values.example.path }}{{- end -}}
{{- end }}

{{/* The metric that autoscaling reads. */}}
{{- define "percore.metric" -}}
{{- ternary "percore_desired_replicas" "percore_in_flight_requests" (gt (int .Values.autoscaling.spareReplicas) 0) -}}
{{- end }}
