# Makes a fresh Windows an image: run once, at the first logon of the installation, by autounattend.xml. Ends with the
# machine switched off; what became of it is said on the serial port.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Start-Transcript -Path 'C:\Windows\Temp\vivarium.log' | Out-Null

function Say([string] $text) {
    $port = New-Object System.IO.Ports.SerialPort 'COM1', 115200
    $port.Open()
    $port.Write("vivarium: $text`r`n")
    $port.Close()
}

function Set-Value([string] $key, [string] $name, [string] $type, $value) {
    if (-not (Test-Path -LiteralPath $key)) {
        New-Item -Path $key -Force | Out-Null
    }
    New-ItemProperty -LiteralPath $key -Name $name -PropertyType $type -Value $value -Force | Out-Null
}

# What only some editions have is left out on the others, and said.
function Try-To([string] $what, [scriptblock] $do) {
    try {
        & $do
    } catch {
        Say "left out: ${what}: $($_.Exception.Message)"
    }
}

function Stop-Startup([string] $service) {
    Try-To "service $service" {
        # The registry takes what some services do not let themselves be told.
        if (Test-Path "HKLM:\SYSTEM\CurrentControlSet\Services\$service") {
            Set-Value "HKLM:\SYSTEM\CurrentControlSet\Services\$service" 'Start' 'DWord' 4
        }
    }
}

function Grant-Only-Administrators([string] $file) {
    # By their identifiers, for their names are translated: SYSTEM and Administrators.
    & icacls.exe $file /inheritance:r /grant '*S-1-5-18:F' /grant '*S-1-5-32-544:F' | Out-Null
    if ($LASTEXITCODE -ne 0) {
        throw "icacls $file ended with $LASTEXITCODE"
    }
}

try {
    Say 'preparing'
    $disc = $PSScriptRoot

    # ---- drivers, for what Setup has not met ----
    Try-To 'drivers' {
        & pnputil.exe /add-driver "$disc\`$WinPEDriver`$\*.inf" /subdirs /install | Out-Null
    }

    # ---- OpenSSH, while updates still work, for it may have to be fetched ----
    Say 'installing OpenSSH'
    $tries = 0
    while (-not (Get-Service -Name 'sshd' -ErrorAction SilentlyContinue)) {
        $tries++
        try {
            Add-WindowsCapability -Online -Name 'OpenSSH.Server~~~~0.0.1.0' | Out-Null
        } catch {
            if ($tries -ge 10) { throw }
        }
        if ($tries -ge 20) { throw 'OpenSSH was installed, and has no service' }
        # The network of a new machine takes minutes to come up, a new service a moment.
        Start-Sleep -Seconds 30
    }
    $ssh = 'C:\ProgramData\ssh'
    New-Item -ItemType Directory -Path $ssh -Force | Out-Null
    Stop-Service -Name 'sshd' -ErrorAction SilentlyContinue
    Remove-Item "$ssh\ssh_host_*" -Force -ErrorAction SilentlyContinue
    foreach ($file in 'sshd_config', 'administrators_authorized_keys', 'ssh_host_ed25519_key', 'ssh_host_ed25519_key.pub') {
        Copy-Item -LiteralPath "$disc\$file" -Destination "$ssh\$file" -Force
        Set-ItemProperty -LiteralPath "$ssh\$file" -Name IsReadOnly -Value $false
        Grant-Only-Administrators "$ssh\$file"
    }
    Set-Value 'HKLM:\SOFTWARE\OpenSSH' 'DefaultShell' 'String' 'C:\Windows\System32\cmd.exe'
    Set-Service -Name 'sshd' -StartupType Automatic
    Start-Service -Name 'sshd'

    # ---- updates ----
    $policies = 'HKLM:\SOFTWARE\Policies\Microsoft'
    Set-Value "$policies\Windows\WindowsUpdate\AU" 'NoAutoUpdate' 'DWord' 1
    Set-Value "$policies\Windows\WindowsUpdate\AU" 'NoAutoRebootWithLoggedOnUsers' 'DWord' 1
    Set-Value "$policies\WindowsStore" 'AutoDownload' 'DWord' 2
    Set-Value "$policies\Windows\DriverSearching" 'SearchOrderConfig' 'DWord' 0

    # ---- Defender: gone from a server; on a desktop it is told to look away, which it may forget but for the folders ----
    Try-To 'removing Defender' {
        if (Get-Command Uninstall-WindowsFeature -ErrorAction SilentlyContinue) {
            Uninstall-WindowsFeature -Name 'Windows-Defender' | Out-Null
        }
    }
    Try-To 'Defender' {
        if (Get-Command Add-MpPreference -ErrorAction SilentlyContinue) {
            Add-MpPreference -ExclusionPath 'C:\'
            Set-MpPreference -DisableRealtimeMonitoring $true -DisableBehaviorMonitoring $true -DisableScriptScanning $true `
                -MAPSReporting Disabled -SubmitSamplesConsent NeverSend -ScanScheduleDay Never
        }
    }

    # ---- firewall, consent prompts, crash dialogs ----
    & netsh.exe advfirewall set allprofiles state off | Out-Null
    Set-Value 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System' 'EnableLUA' 'DWord' 0
    Set-Value 'HKLM:\SOFTWARE\Microsoft\Windows\Windows Error Reporting' 'Disabled' 'DWord' 1
    Set-Value 'HKLM:\SOFTWARE\Microsoft\Windows\Windows Error Reporting' 'DontShowUI' 'DWord' 1
    Set-Value 'HKLM:\SYSTEM\CurrentControlSet\Control\Windows' 'ErrorMode' 'DWord' 2

    # ---- telemetry, maintenance, indexing ----
    Set-Value "$policies\Windows\DataCollection" 'AllowTelemetry' 'DWord' 0
    Set-Value "$policies\Windows\CloudContent" 'DisableWindowsConsumerFeatures' 'DWord' 1
    Set-Value 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Schedule\Maintenance' 'MaintenanceDisabled' 'DWord' 1
    foreach ($service in 'wuauserv', 'UsoSvc', 'WaaSMedicSvc', 'BITS', 'DoSvc', 'DiagTrack', 'DPS', 'LanmanServer', 'MSDTC',
        'NlaSvc', 'SysMain', 'WSearch', 'edgeupdate', 'edgeupdatem', 'W32Time') {
        Stop-Startup $service
    }
    Try-To 'Server Manager' {
        Get-ScheduledTask -TaskName 'ServerManager' -ErrorAction SilentlyContinue | Disable-ScheduledTask | Out-Null
    }

    # ---- no network is asked whether it is the Internet; long paths; no sleep ----
    Set-Value 'HKLM:\SYSTEM\CurrentControlSet\Services\NlaSvc\Parameters\Internet' 'EnableActiveProbing' 'DWord' 0
    Set-Value 'HKLM:\SYSTEM\CurrentControlSet\Control\FileSystem' 'LongPathsEnabled' 'DWord' 1
    & powercfg.exe /hibernate off
    foreach ($timer in 'standby-timeout-ac', 'monitor-timeout-ac', 'disk-timeout-ac') {
        & powercfg.exe /change $timer 0
    }
    & tzutil.exe /s UTC

    # ---- accounts: passwords that do not run out, and are known to nobody after this ----
    & net.exe accounts /maxpwage:unlimited | Out-Null
    Try-To 'the password that does not run out' {
        Set-LocalUser -Name 'build' -PasswordNeverExpires $true
    }
    $logon = 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon'
    Set-Value $logon 'AutoAdminLogon' 'String' '0'
    foreach ($name in 'DefaultPassword', 'AutoLogonCount') {
        Remove-ItemProperty -LiteralPath $logon -Name $name -Force -ErrorAction SilentlyContinue
    }
    foreach ($file in 'C:\Windows\Panther\unattend.xml', 'C:\Windows\Panther\unattend-original.xml',
        'C:\Windows\System32\Sysprep\unattend.xml') {
        Remove-Item -LiteralPath $file -Force -ErrorAction SilentlyContinue
    }

    # ---- room to write, and the word that sshd listens ----
    New-Item -ItemType Directory -Path 'C:\workdir', 'C:\vivarium' -Force | Out-Null
    & icacls.exe 'C:\workdir' /grant '*S-1-5-32-544:(OI)(CI)F' | Out-Null
    Copy-Item -LiteralPath "$disc\ready.ps1" -Destination "$ssh\ready.ps1" -Force
    $action = New-ScheduledTaskAction -Execute 'powershell.exe' `
        -Argument "-NoProfile -ExecutionPolicy Bypass -File $ssh\ready.ps1"
    $settings = New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -Priority 4
    Register-ScheduledTask -TaskName 'VivariumReady' -User 'SYSTEM' -RunLevel Highest -Settings $settings `
        -Action $action -Trigger (New-ScheduledTaskTrigger -AtStartup) | Out-Null

    # ---- what is free must be so in the image as well ----
    Try-To 'making the image small' {
        & dism.exe /Online /Cleanup-Image /StartComponentCleanup /Quiet | Out-Null
        Optimize-Volume -DriveLetter C -ReTrim
    }
    Say 'sealed'
} catch {
    Say "failed: $($_.Exception.Message) ($($_.InvocationInfo.PositionMessage -replace '\s+', ' '))"
} finally {
    Stop-Computer -Force
}
