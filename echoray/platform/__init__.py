"""Running the jobs: the Ray runtime, the workspace, the pipeline of steps and the machine check."""
