"""The command line: every command is one call of a public function."""
