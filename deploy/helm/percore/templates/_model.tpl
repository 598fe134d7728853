{{/* The init container that fetches `model.uri`, and what belongs to it. */}}

{{/* A quarter more than a fetch may write: file systems need more than the bytes of files. */}}
{{- define "percore.modelVolumeBytes" -}}
{{- include "percore.aQuarterMore" .Values.model.maxBytes -}}
{{- end }}

{{/* The port of the store; empty for a file. */}}
{{- define "percore.modelPort" -}}
{{- $scheme := (urlParse .Values.model.uri).scheme -}}
{{- if ne $scheme "file" -}}
{{- $address := ternary .Values.model.uri (.Values.model.endpoint | default "https://cloud") (eq $scheme "https") -}}
{{- $url := urlParse $address -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "80" "443" (eq $url.scheme "http")) -}}
{{- end -}}
{{- end }}

{{- define "percore.fetchModel" -}}
{{- with .Values.model }}
# It requests the same CPU, memory and disk as the worker. It runs before the worker, so the pod needs no more than without it, and stays
# Guaranteed.
- name: fetch-model
  image: {{ include "percore.image" (dict "root" $ "image" $.Values.image) | quote }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  args:
    - fetch
    - {{ .uri | quote }}
    - /models/fetched
    {{- with .name }}
    - --name={{ . }}
    {{- end }}
  env:
    - name: PERCORE_LOAD_TIMEOUT
      value: {{ $.Values.timeouts.load | quote }}
    - name: PERCORE_FETCH_MAX_BYTES
      value: {{ int64 .maxBytes | quote }}
    {{- with .digest }}
    - name: PERCORE_MODEL_DIGEST
      value: {{ . | quote }}
    {{- end }}
    {{- with .endpoint }}
    - name: PERCORE_FETCH_ENDPOINT
      value: {{ . | quote }}
    {{- end }}
    {{- if .anonymous }}
    - name: PERCORE_FETCH_ANONYMOUS
      value: "yes"
    {{- end }}
    {{- with .caConfigMap }}
    {{- if .name }}
    - name: PERCORE_FETCH_CA_FILE
      value: /etc/percore/model-ca/{{ .key }}
    {{- end }}
    {{- end }}
    {{- include "percore.logLevel" $.Values.logLevel | nindent 4 }}
    {{- with .env }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with .existingSecret }}
  envFrom:
    - secretRef:
        name: {{ . | quote }}
  {{- end }}
  resources: {{- include "percore.workerResources" $ | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  securityContext: {{- include "percore.containerSecurity" $ | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
    {{- if .caConfigMap.name }}
    - name: model-ca
      mountPath: /etc/percore/model-ca
      readOnly: true
    {{- end }}
    {{- with $.Values.extraVolumeMounts }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}
{{- end }}
