{{- define "meow.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "meow.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "meow.podSecurity" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 100
  fsGroup: 100
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A Ray container. Arguments: root, name, image, cpus, memory, gpus. */}}
{{- define "meow.container" -}}
name: {{ .name }}
image: {{ .image }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{- include "meow.containerSecurity" .root | nindent 2 }}
env:
  - {name: HOME, value: /scratch}
  - {name: TMPDIR, value: /scratch} # checkpoints, exports and tables that are being sorted
  - {name: RAY_TMPDIR, value: /tmp}
  - {name: MEOW_HOME, value: /cache/meow}
  - {name: HF_HOME, value: /cache/huggingface}
  - {name: VLLM_CACHE_ROOT, value: /cache/vllm}
{{- with .root.Values.secrets.environment }}
envFrom:
  {{- range . }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}
{{- $size := dict "cpu" (toString .cpus) "memory" .memory }}
{{- if .gpus }}{{ $_ := set $size "nvidia.com/gpu" (toString .gpus) }}{{ end }}
resources:
  requests: {{- toYaml $size | nindent 4 }}
  limits: {{- toYaml $size | nindent 4 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: scratch, mountPath: /scratch}
  - {name: cache, mountPath: /cache}
  - {name: shared-memory, mountPath: /dev/shm}
  {{- if eq .name "ray-head" }}
  - {name: config, mountPath: /etc/meow, readOnly: true}
  {{- end }}
{{- end }}

{{/* The volumes of a pod. Arguments: root, scratch, sharedMemory. */}}
{{- define "meow.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 20Gi}
- name: scratch
  emptyDir: {sizeLimit: {{ .scratch }}}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .sharedMemory }}}
- name: cache
  persistentVolumeClaim: {claimName: {{ .root.Release.Name }}-cache}
{{- end }}

{{- define "meow.cluster" -}}
rayVersion: {{ .Values.rayVersion | quote }}
authOptions:
  mode: token
  {{- with .Values.secrets.token }}
  secretName: {{ . }}
  {{- end }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: 120
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  securityContext: {{- include "meow.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 500m, memory: 1Gi}
    limits: {cpu: 500m, memory: 1Gi}
headGroupSpec:
  serviceType: ClusterIP
  rayStartParams:
    num-cpus: "0"
    object-spilling-directory: /scratch
    dashboard-host: 0.0.0.0 # of the pod; the network policy and the token protect it
  template:
    metadata:
      labels: {{- include "meow.labels" . | nindent 8 }}
    spec:
      {{- include "meow.podSecurity" . | replace "automountServiceAccountToken: false" "automountServiceAccountToken: true" | nindent 6 }}
      {{- with .Values.image.pullSecrets }}
      imagePullSecrets: {{- range . }}
        - name: {{ . }}{{ end }}
      {{- end }}
      restartPolicy: Never
      containers:
        - {{- include "meow.container" (dict "root" . "name" "ray-head" "image" .Values.image.cpu "cpus" .Values.head.cpus "memory" .Values.head.memory "gpus" 0) | nindent 10 }}
          ports:
            - {name: gcs-server, containerPort: 6379}
            - {name: dashboard, containerPort: 8265}
            - {name: metrics, containerPort: 8080}
      volumes: {{- include "meow.volumes" (dict "root" . "scratch" "20Gi" "sharedMemory" "4Gi") | nindent 8 }}
        - name: config
          configMap: {name: {{ .Release.Name }}-config}
workerGroupSpecs:
  {{- $root := . }}
  {{- range .Values.groups }}
  - groupName: {{ .name }}
    replicas: 0
    minReplicas: 0
    maxReplicas: {{ .maxNodes }}
    rayStartParams:
      num-gpus: {{ .gpus | quote }}
      object-spilling-directory: /scratch
    labels: {{- toYaml .labels | nindent 6 }}
    template:
      metadata:
        labels: {{- include "meow.labels" $root | nindent 10 }}
      spec:
        {{- include "meow.podSecurity" $root | nindent 8 }}
        {{- with $root.Values.image.pullSecrets }}
        imagePullSecrets: {{- range . }}
          - name: {{ . }}{{ end }}
        {{- end }}
        restartPolicy: Never
        terminationGracePeriodSeconds: 120
        {{- with .nodeSelector }}
        nodeSelector: {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with .tolerations }}
        tolerations: {{- toYaml . | nindent 10 }}
        {{- end }}
        containers:
          - {{- include "meow.container" (dict "root" $root "name" "ray-worker" "image" $root.Values.image.gpu "cpus" .cpus "memory" .memory "gpus" .gpus) | nindent 12 }}
        volumes: {{- include "meow.volumes" (dict "root" $root "scratch" .scratch "sharedMemory" .sharedMemory) | nindent 10 }}
  {{- end }}
{{- end }}
