package sandbox

import "strconv"

// Size writes a number of bytes as configurations do: "512 MB".
func Size(n int64) string {
	units := []string{"B", "KB", "MB", "GB", "TB"}
	for len(units) > 1 && n >= 1024 && n%1024 == 0 {
		n, units = n/1024, units[1:]
	}
	return strconv.FormatInt(n, 10) + " " + units[0]
}
