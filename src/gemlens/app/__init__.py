"""The door: command line and, later, the web. Nobody imports it."""
