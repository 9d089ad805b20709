"""What a network is trained for; the pipeline knows only `base.Task`."""
