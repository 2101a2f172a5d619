"""The known networks, one file each: functions that return a `Network`."""
