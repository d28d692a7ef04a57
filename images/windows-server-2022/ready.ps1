# Says on the serial port that sshd listens, once it does: a task at every start.
$tries = 0
while ($tries -lt 1200) {
    $tries++
    try {
        $client = New-Object System.Net.Sockets.TcpClient '127.0.0.1', 22
        $client.Close()
        $port = New-Object System.IO.Ports.SerialPort 'COM1', 115200
        $port.Open()
        $port.Write("vivarium: sshd listens`r`n")
        $port.Close()
        exit 0
    } catch {
        Start-Sleep -Milliseconds 500
    }
}
exit 1
